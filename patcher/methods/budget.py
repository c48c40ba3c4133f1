"""How many keys a row keeps: `k` of them, or the fraction `keep` of what it sees; which of them are protected."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from .rows import Chunk


@dataclass(frozen=True)
class Budget:
    """Exactly one of k (kept keys per row) and keep (kept fraction, in (0, 1]).

    protect_first, protect_recent: the first and the last visible keys of a row that are always kept, within k.
    Raises UsageError for values outside their range.
    """

    k: int | None = None
    keep: float | None = None
    protect_first: int = 0
    protect_recent: int = 0

    def __post_init__(self) -> None:
        if (self.k is None) == (self.keep is None):
            raise UsageError("give exactly one of k (kept keys per row) and keep (kept fraction)")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise UsageError(f"k must be a whole number of at least 1, not {self.k!r}")
        if self.keep is not None and not (isinstance(self.keep, float | int) and 0 < self.keep <= 1):
            raise UsageError(f"keep must be a fraction in (0, 1], not {self.keep!r}")
        for name in ("protect_first", "protect_recent"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise UsageError(f"{name} must be a whole number of at least 0, not {count!r}")
        if self.k is not None and self.protect_first + self.protect_recent > self.k:
            raise UsageError(
                f"{self.protect_first + self.protect_recent} protected keys do not fit in k = {self.k}: raise k"
            )

    def rows_k(self, lengths: Tensor) -> Tensor:
        """Kept keys for rows of these lengths: min(k, length), or max(1, ceil(keep x length)); int64 like lengths."""
        if self.k is not None:
            return lengths.clamp(max=self.k)
        # In whole numbers: 0.07 x 100 is 7, not 7.000000000000001 rounded up to 8.
        share = Fraction(str(self.keep)).limit_denominator(10**9)
        rounded_up = (lengths * share.numerator + share.denominator - 1) // share.denominator
        return torch.minimum(rounded_up.clamp(min=1), lengths)

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
        return ((ranks < first) | (ranks >= lengths - recent)) & (chunk.scores != -torch.inf)

    def describe(self) -> str:
        """For tables: 'k = 64' or 'keep = 0.25'."""
        return f"k = {self.k}" if self.k is not None else f"keep = {self.keep}"


def budget_of(method: Budget) -> dict[str, Any]:
    """The fields of a method that any other method with a budget has too."""
    return {item.name: getattr(method, item.name) for item in fields(Budget)}
