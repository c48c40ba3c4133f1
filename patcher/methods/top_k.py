"""Top-k attention: per query keep the k highest scores, softmax over those only.

Gupta, Dar, Goodman, Ciprut, Berant: Memory-efficient Transformers via Top-k Attention, 2021 (arXiv 2106.06899).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from . import asking
from .budget import Budget, require_choice
from .chunk import AttentionInputs, Chunk, Observer, RowCounts, Selection
from .rows import attend_rows

# From this row width on, finding the k-th score through group maxima was faster than one torch.topk over the row.
GROUPED_FROM = 1024


@dataclass(frozen=True)
class TopK(Budget):
    """Exact top-k attention (see Budget for the fields).

    denominator: how compensation gets the mass of dropped keys: "exact", or "rounded": with a single query, from the
    scores of keys rounded to 8 bits, so that few keys are read in full.
    """

    denominator: str = "exact"

    name: ClassVar[str] = "top-k"
    summary: ClassVar[str] = "keeps the k highest scores of every query; exact selection, nothing to calibrate"
    paper: ClassVar[str] = "Gupta et al. 2021, arXiv 2106.06899"
    needs_thresholds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("denominator", self.denominator, ("exact", "rounded"))
        if self.denominator != "exact" and self.compensation == "none":
            raise UsageError(f"denominator {self.denominator} goes with compensation sdc or sdc+vmc")

    @property
    def reads_every_score(self) -> bool:
        """Whether exact scores of dropped keys are needed for what is kept."""
        return self.compensation != "none" and self.denominator == "exact"

    def describe(self) -> str:
        """For tables: 'k = 64, sdc+vmc'."""
        return super().describe() + (f", {self.denominator} denominator" if self.denominator != "exact" else "")

    def attend(
        self,
        inputs: AttentionInputs,
        *,
        thresholds: object = None,
        count: bool = False,
        observer: Observer | None = None,
    ) -> tuple[Tensor, RowCounts | None]:
        """Attention over the kept keys: output [B, H, q, E] and, if asked, what was kept (see attend_rows)."""
        return attend_rows(
            inputs,
            self.select,
            count=count,
            observer=observer,
            compensation=self.compensation,
            v_mean=self.v_mean,
            denominator=self.denominator,
        )

    def select(self, chunk: Chunk, thresholds: object = None) -> Selection:
        """The kept keys of a chunk; everything where no row is longer than its budget."""
        rows_k = self.rows_k(chunk.lengths)
        if asking.answers(rows_k) and bool((rows_k >= chunk.lengths).all()):
            return Selection(None)
        keep = keep_highest(chunk.scores, rows_k, self.protected(chunk), self.most(chunk.scores.shape[-1]))
        return Selection(keep, dropped_mass=Chunk.rounded_mass)


def keep_highest(scores: Tensor, rows_k: Tensor, protected: Tensor | None = None, most: int | None = None) -> Tensor:
    """bool like scores: exactly min(rows_k, visible) keys per row, the highest; among equals the earliest.

    scores: [B, H, c, m], -inf where hidden. rows_k: int64 [B or 1, H or 1, c]. protected: bool, kept first of all.
    most: what no rows_k exceeds (None: m); only where rows_k cannot be asked does less of it save work.
    """
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    rows_k = rows_k.unsqueeze(-1)
    if not asking.answers(scores):
        scores = _nan_highest(scores)
    limit, highest = _kth_highest(scores, rows_k, most)
    if asking.answers(scores) and bool(highest.isnan().any()):
        scores = _nan_highest(scores)
        limit, _ = _kth_highest(scores, rows_k, most)
    visible = scores != -torch.inf
    keep = (scores >= limit) & visible
    over = keep.sum(-1, keepdim=True) > rows_k
    if asking.answers(over) and not bool(over.any()):
        return keep
    above = scores > limit
    level = keep & ~above
    return above | (level & (level.cumsum(-1) <= rows_k - above.sum(-1, keepdim=True)))


def _nan_highest(scores: Tensor) -> Tensor:
    """A NaN counts as highest, so that it spoils its row instead of vanishing from it."""
    return scores.masked_fill(scores.isnan(), torch.inf)


def _kth_highest(scores: Tensor, rows_k: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The values [B, H, c, 1] of each row's k-th highest (-inf for a row that sees fewer keys) and highest score."""
    width, asked = scores.shape[-1], asking.answers(rows_k)
    if asked:
        most = int(rows_k.max())
    most = width if most is None else min(most, width)
    if most == 0:
        limit = torch.full_like(scores[..., :1], torch.inf)
        return limit, limit
    candidates = _best_groups(scores, most) if width >= GROUPED_FROM else scores
    best = candidates.topk(most, dim=-1).values
    if asked and bool((rows_k == most).all()):
        return best[..., -1:], best[..., :1]
    index = (rows_k.clamp(max=most) - 1).clamp(min=0).expand(*scores.shape[:-1], 1)
    return best.gather(-1, index), best[..., :1]


def _best_groups(scores: Tensor, k: int) -> Tensor:
    """Candidates that hold the k highest scores: they lie in the k groups with the highest maxima.

    Groups are strided (key j belongs to group j mod m), so the maxima are elementwise over G contiguous blocks.
    """
    width = scores.shape[-1]
    size = 16 if width >= 8192 else 8
    count = width // size
    if k * 2 >= count:
        return scores
    blocks = scores[..., : size * count].unflatten(-1, (size, count))
    groups = blocks.amax(-2).topk(k, dim=-1, sorted=False).indices
    chosen = blocks.gather(-1, groups.unsqueeze(-2).expand(*groups.shape[:-1], size, k)).flatten(-2)
    return torch.cat([chosen, scores[..., size * count :]], -1)
