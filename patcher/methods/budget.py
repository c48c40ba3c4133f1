"""How much a row keeps: `k` of its elements, or the fraction `keep` of them; which keys of a row are protected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import UsageError
from .chunk import Chunk
from .compensation import COMPENSATIONS, V_MEANS, check_compensation

MOST_COUNT = 2**53  # what every reader of JSON holds exactly, and far from where int64 ends


@cache
def exact_share(keep: float) -> Fraction:
    """A kept fraction as it was written: 0.07 x 100 is 7, not 7.000000000000001 rounded up to 8."""
    return Fraction(str(keep)).limit_denominator(10**9)


@dataclass(frozen=True)
class Kept:
    """Exactly one of k (elements kept per row) and keep (kept fraction, in (0, 1]); UsageError for other values."""

    k: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.keep is None):
            raise UsageError("give exactly one of k (kept per row) and keep (kept fraction)")
        if self.k is not None:
            require_count("k", self.k, at_least=1)
        number = isinstance(self.keep, float | int) and not isinstance(self.keep, bool)
        if self.keep is not None and not (number and 0 < self.keep <= 1):
            raise UsageError(f"keep must be a fraction in (0, 1], not {self.keep!r}")

    def rows_k(self, lengths: Tensor) -> Tensor:
        """What rows of these lengths keep: min(k, length), or max(1, ceil(keep x length)); int64 like lengths."""
        if self.k is not None:
            return lengths.clamp(max=self.k)
        share = exact_share(self.keep)
        rounded_up = (lengths * share.numerator + share.denominator - 1) // share.denominator
        return torch.minimum(rounded_up.clamp(min=1), lengths)

    def as_dense(self) -> Self:
        """The same method with all kept, which is the dense model."""
        return replace(self, k=None, keep=1.0)

    def as_small(self, k: int) -> Self:
        """The same method at no more than k, so that it selects even on short inputs."""
        return replace(self, k=min(self.k or k, k), keep=None)

    def describe(self) -> str:
        """For tables: 'k = 64' or 'keep = 0.25'."""
        return f"k = {self.k}" if self.k is not None else f"keep = {self.keep}"


@dataclass(frozen=True)
class Budget(Kept):
    """Kept keys per row of scores.

    protect_first, protect_recent: the first and the last visible keys of a row that are always kept, within k.
    compensation: "none", "sdc" or "sdc+vmc", what becomes of the dropped keys' mass (see compensation.py). v_mean: the
    mean of value rows that "sdc+vmc" uses, over all "visible" keys or over the "dropped" ones. min_length: rows that
    see fewer keys keep them all.
    Raises UsageError for values outside their range.
    """

    protect_first: int = 0
    protect_recent: int = 0
    compensation: str = "none"
    v_mean: str = "visible"
    min_length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("protect_first", "protect_recent", "min_length"):
            require_count(name, getattr(self, name))
        if self.k is not None and self.protect_first + self.protect_recent > self.k:
            raise UsageError(
                f"{self.protect_first + self.protect_recent} protected keys do not fit in k = {self.k}: raise k"
            )
        check_compensation(self.compensation, self.v_mean)

    def rows_k(self, lengths: Tensor) -> Tensor:
        """As in Kept, and the length itself for rows shorter than min_length."""
        rows_k = super().rows_k(lengths)
        return torch.where(lengths < self.min_length, lengths, rows_k) if self.min_length else rows_k

    def most(self, length: int) -> int:
        """What no row of up to `length` keys exceeds."""
        kept = self.k if self.k is not None else math.ceil(exact_share(self.keep) * length)
        return min(max(kept, 1, self.min_length - 1), length)

    def describe(self) -> str:
        """For tables: 'k = 64, dense below 512 keys, sdc+vmc'."""
        below = f", dense below {self.min_length} keys" if self.min_length else ""
        return super().describe() + below + (f", {self.compensation}" if self.compensation != "none" else "")

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The fields that native kernels take, worked out once: k (0: none), `keep` as numerator and denominator,
        min_length, compensation and v_mean by their places in COMPENSATIONS and V_MEANS."""
        share = (0, 1) if self.keep is None else exact_share(self.keep).as_integer_ratio()
        means = COMPENSATIONS.index(self.compensation), V_MEANS.index(self.v_mean)
        return self.k or 0, *share, self.min_length, *means

    def as_dense(self) -> Self:
        """As in Kept; short rows take the same way as all others."""
        return replace(self, k=None, keep=1.0, min_length=0)

    def as_small(self, k: int) -> Self:
        """As in Kept, for rows of any length, with protected keys only where they fit."""
        k = min(self.k or k, k)
        fit = self.protect_first + self.protect_recent <= k
        first, recent = (self.protect_first, self.protect_recent) if fit else (0, 0)
        return replace(self, k=k, keep=None, protect_first=first, protect_recent=recent, min_length=0)

    def protected(self, chunk: Chunk) -> Tensor | None:
        """bool like chunk.scores: visible keys that are always kept; None where nothing is protected.

        Where they do not fit in a row's own budget (a small fraction of a short row), the first keys go before the
        recent ones.
        """
        if not (self.protect_first or self.protect_recent):
            return None
        ranks, lengths = chunk.ranks(), chunk.lengths.unsqueeze(-1)
        room = self.rows_k(lengths)
        first = room.clamp(max=self.protect_first)
        recent = (room - first).clamp(max=self.protect_recent)
        return ((ranks < first) | (ranks >= lengths - recent)) & chunk.visible


def describe_kept(methods: Iterable[Kept]) -> str:
    """What methods keep, without their other fields: 'k = 64', or 'k = 32, k = 64' where they differ."""
    return ", ".join(sorted({Kept(method.k, method.keep).describe() for method in methods}))


def budget_of(method: Budget) -> dict[str, Any]:
    """The fields of a method that any other method with a budget has too."""
    return {item.name: getattr(method, item.name) for item in fields(Budget)}


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """UsageError unless a value is one of some choices."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def require_count(name: str, value: Any, *, at_least: int = 0, at_most: int = MOST_COUNT) -> None:
    """UsageError unless a value is a whole number of at least and at most so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UsageError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    if value > at_most:
        raise UsageError(f"{name} must be at most {at_most}")
