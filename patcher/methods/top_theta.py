"""Top-theta attention: keep what is above a threshold that calibration fixed per head and row length.

Berestizshevsky, Sabary, Cavigelli, Cohen, Zhang, Trost: Top-Theta Attention, 2025 (arXiv 2502.08363).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...errors import UsageError
from . import asking
from .budget import Budget, require_choice, require_count
from .chunk import AttentionInputs, Chunk, Observer, RowCounts, Selection
from .rows import attend_rows
from .top_k import keep_highest

PLACEMENTS = ("post-softmax", "max-relative", "pre-softmax")
DENOMINATORS = ("exact", "exp-threshold", "offline", "rounded")


class Thresholds(Protocol):
    """A calibrated table of one module."""

    def lookup(self, lengths: Tensor) -> Tensor:
        """Thresholds for rows of these lengths: int64 [B or 1, H or 1, c] -> float32 [B or 1, H, c], NaN where none.

        In units of the score, relative to what the placement compares with (see `reference`).
        """
        ...

    def lookup_dropped(self, lengths: Tensor) -> Tensor:
        """Mean sum of exp(score - row maximum) over dropped keys, shaped and with NaN as in lookup."""
        ...


@dataclass(frozen=True)
class TopTheta(Budget):
    """Thresholded attention that keeps k keys per row on average (see Budget for the fields).

    placement: what is compared with the threshold: the weight ("post-softmax"), the score less the row's maximum
    ("max-relative") or the score ("pre-softmax"). The first two ignore a constant added to a row's scores.
    denominator: how SDC gets the mass of dropped keys: "exact"; "exp-threshold", an upper bound that reads no dropped
    score; "offline", the mean of calibration; "rounded": with a single query, from the scores of keys rounded to 8
    bits, so that few keys are read in full. Post-softmax weights need a denominator anyway: "exact" or "rounded".
    min_keep: a row that would keep fewer keeps its min_keep highest scores instead. A row no longer than its k is
    dense; a row without a threshold uses its own exact top-k.
    """

    min_keep: int = 1
    placement: str = "post-softmax"
    denominator: str = "exact"

    name: ClassVar[str] = "top-theta"
    summary: ClassVar[str] = "keeps what is above a calibrated threshold per head and row length; no sorting"
    paper: ClassVar[str] = "Berestizshevsky et al. 2025, arXiv 2502.08363"
    needs_thresholds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("min_keep", self.min_keep, at_least=1)
        if self.k is not None and self.min_keep > self.k:
            raise UsageError(f"min_keep = {self.min_keep} is more than k = {self.k}: lower min_keep or raise k")
        require_choice("placement", self.placement, PLACEMENTS)
        require_choice("denominator", self.denominator, DENOMINATORS)
        if denominator_for(self.placement, self.denominator) != self.denominator:
            raise UsageError(
                f"denominator {self.denominator} saves nothing with post-softmax placement, whose weights need the "
                "exact or rounded one: use max-relative or pre-softmax"
            )
        compares = self.placement == "post-softmax" and self.denominator == "rounded"
        if self.denominator != "exact" and self.compensation == "none" and not compares:
            raise UsageError(f"denominator {self.denominator} goes with compensation sdc or sdc+vmc")

    @property
    def reads_every_score(self) -> bool:
        """Whether exact scores of dropped keys are needed for what is kept; rows without a threshold apart."""
        return self.denominator == "exact" and (self.compensation != "none" or self.placement == "post-softmax")

    def describe(self) -> str:
        """For tables: 'k = 64, sdc+vmc, post-softmax'."""
        estimated = f", {self.denominator} denominator" if self.denominator != "exact" else ""
        return f"{super().describe()}, {self.placement}{estimated}"

    def as_small(self, k: int) -> TopTheta:
        """As in Budget, with min_keep no larger than k."""
        small = replace(self, min_keep=1)
        return replace(Budget.as_small(small, k), min_keep=min(self.min_keep, k))

    def attend(
        self,
        inputs: AttentionInputs,
        *,
        thresholds: Thresholds | None = None,
        count: bool = False,
        observer: Observer | None = None,
    ) -> tuple[Tensor, RowCounts | None]:
        """Attention over the kept keys: output [B, H, q, E] and, if asked, what was kept (see attend_rows)."""
        return attend_rows(
            inputs,
            lambda chunk: self.select(chunk, thresholds),
            count=count,
            observer=observer,
            compensation=self.compensation,
            v_mean=self.v_mean,
            denominator=self.denominator,
        )

    def select(self, chunk: Chunk, thresholds: Thresholds | None = None) -> Selection:
        """The kept keys of a chunk, with the rows that fell back to top-k and those that min-keep saved."""
        rows_k = self.rows_k(chunk.lengths)
        sparse = rows_k < chunk.lengths
        if asking.answers(sparse) and not bool(sparse.any()):
            return Selection(None)
        protected = self.protected(chunk)
        if thresholds is None:
            keep = keep_highest(chunk.scores, rows_k, protected, self.most(chunk.scores.shape[-1]))
            return Selection(keep, fallback=sparse, dropped_mass=Chunk.rounded_mass)
        theta = thresholds.lookup(chunk.lengths).to(chunk.scores.dtype)
        fallback = sparse & theta.isnan()
        limit = theta.unsqueeze(-1) + reference(chunk, self.placement)
        keep = ~(chunk.scores <= limit)  # keeps a NaN, which spoils its row as it would densely
        if protected is not None:
            keep |= protected
        few = sparse & ~fallback & (keep.sum(-1) < self.min_keep)
        exact = fallback | few
        if not asking.answers(exact) or bool(exact.any()):
            wanted = torch.where(fallback, rows_k, chunk.lengths.clamp(max=self.min_keep))
            most = max(self.most(chunk.scores.shape[-1]), self.min_keep)
            highest = keep_highest(chunk.scores, wanted, protected, most)
            keep = torch.where(exact.unsqueeze(-1), highest, keep)
        keep = torch.where(sparse.unsqueeze(-1), keep, chunk.visible)
        return Selection(keep, fallback=fallback, rescued=few, dropped_mass=partial(self._dropped_mass, thresholds))

    def _dropped_mass(self, thresholds: Thresholds, chunk: Chunk, keep: Tensor) -> Tensor | None:
        """As in Selection, from rounded keys or what calibration knows alone."""
        if self.denominator in ("exact", "rounded"):
            return chunk.rounded_mass(keep)
        dropped = chunk.lengths - keep.sum(-1)
        if self.denominator == "offline":
            estimate = thresholds.lookup_dropped(chunk.lengths).to(chunk.scores.dtype)
        else:
            theta = thresholds.lookup(chunk.lengths).to(chunk.scores.dtype)
            none = theta.isnan()
            limit = theta.masked_fill(none, 0).unsqueeze(-1) + reference(chunk, self.placement)
            bound = (limit - chunk.row_max).squeeze(-1).clamp(max=0).exp()
            estimate = (dropped * bound).masked_fill(none, torch.nan)  # put in last, a NaN has no gradient
        return torch.where(dropped > 0, estimate, 0)


def denominator_for(placement: str | None, denominator: str) -> str:
    """A denominator where it goes with a placement, else "exact"."""
    return "exact" if placement == "post-softmax" and denominator not in ("exact", "rounded") else denominator


def reference(chunk: Chunk, placement: str) -> Tensor:
    """What a placement subtracts from a row's scores before it compares them: [B, H, c, 1] or a scalar.

    post-softmax: a weight exceeds theta where its score, less the logarithm of the denominator, exceeds log theta.
    """
    if placement == "post-softmax":
        return chunk.denominator
    if placement == "max-relative":
        return chunk.row_max
    return chunk.scores.new_zeros(())
