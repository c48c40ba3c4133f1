"""Top-theta attention: keep the scores above a threshold that calibration fixed per head and row length.

Berestizshevsky, Sabary, Cavigelli, Cohen, Zhang, Trost: Top-Theta Attention, 2025 (arXiv 2502.08363). Here: pre-softmax
placement, no compensation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...errors import UsageError
from .budget import Budget, require_count
from .rows import AttentionInputs, Chunk, Observer, RowCounts, Selection, attend_rows
from .top_k import keep_highest


class Thresholds(Protocol):
    """A calibrated table of one module."""

    def lookup(self, lengths: Tensor) -> Tensor:
        """Thresholds for rows of these lengths: int64 [B or 1, H or 1, c] -> float32 [B or 1, H, c], NaN where none."""
        ...


@dataclass(frozen=True)
class TopTheta(Budget):
    """Thresholded attention that keeps k keys per row on average (see Budget for the fields).

    min_keep: a row that would keep fewer keeps its min_keep highest scores instead. A row no longer than its k is
    dense; a row without a threshold uses its own exact top-k.
    """

    min_keep: int = 1

    name: ClassVar[str] = "top-theta"
    summary: ClassVar[str] = "keeps scores above a calibrated threshold per head and row length; no sorting"
    paper: ClassVar[str] = "Berestizshevsky et al. 2025, arXiv 2502.08363"
    needs_thresholds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("min_keep", self.min_keep, at_least=1)
        if self.k is not None and self.min_keep > self.k:
            raise UsageError(f"min_keep = {self.min_keep} is more than k = {self.k}: lower min_keep or raise k")

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
        return attend_rows(inputs, lambda chunk: self.select(chunk, thresholds), count=count, observer=observer)

    def select(self, chunk: Chunk, thresholds: Thresholds | None) -> Selection:
        """The kept keys of a chunk, with the rows that fell back to top-k and those that min-keep saved."""
        rows_k = self.rows_k(chunk.lengths)
        sparse = rows_k < chunk.lengths
        if not bool(sparse.any()):
            return Selection(None)
        protected = self.protected(chunk)
        if thresholds is None:
            return Selection(keep_highest(chunk.scores, rows_k, protected), fallback=sparse)
        theta = thresholds.lookup(chunk.lengths).to(chunk.scores.dtype)
        fallback = sparse & theta.isnan()
        visible = chunk.scores != -torch.inf
        keep = ~(chunk.scores <= theta.unsqueeze(-1))  # keeps a NaN, which spoils its row as it would densely
        if protected is not None:
            keep |= protected
        few = sparse & ~fallback & (keep.sum(-1) < self.min_keep)
        if bool(few.any()):
            floor = keep_highest(chunk.scores, chunk.lengths.clamp(max=self.min_keep), protected)
            keep = torch.where(few.unsqueeze(-1), floor, keep)
        if bool(fallback.any()):
            keep = torch.where(fallback.unsqueeze(-1), keep_highest(chunk.scores, rows_k, protected), keep)
        return Selection(torch.where(sparse.unsqueeze(-1), keep, visible), fallback=fallback, rescued=few)
