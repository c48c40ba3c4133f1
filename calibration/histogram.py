"""Streaming statistics of attention scores, and the thresholds that follow from them.

One histogram per query head and bucket of row lengths. Counts are integers on a fixed grid: memory does not grow with
the number of samples, and neither order nor batching of the samples matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..patcher.methods.budget import Budget
from ..patcher.methods.rows import Chunk
from ..patcher.thresholds import ModuleThresholds

# Bins are equal steps of asinh(score): about 0.018 wide near zero and 0.2 % of the score far from it.
BINS = 1024
SCORE_LIMIT = 4096.0
_REACH = math.asinh(SCORE_LIMIT)
_STEP = 2 * _REACH / BINS

# Row lengths fall into buckets that grow by this factor; thresholds are interpolated between their mean lengths.
BUCKET_GROWTH = 1.25
_EDGES = torch.tensor(sorted({math.ceil(BUCKET_GROWTH**power) for power in range(1, 100)}))


@dataclass
class _Bucket:
    """counts: int64 [H, BINS]; budget: summed kept keys, int64 [H]; rows and their summed length are head 0's."""

    counts: Tensor
    budget: Tensor
    rows: int = 0
    length_sum: int = 0


class ScoreHistogram:
    """Observes one module (it is an Observer) and fits its thresholds.

    Only rows that see more keys than their budget are recorded; padding queries never are.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.buckets: dict[int, _Bucket] = {}
        self.shortest = 0
        self.longest = 0

    def __call__(self, chunk: Chunk) -> None:
        """Adds the scores of a chunk."""
        scores = chunk.scores.float()
        protected = self.budget.protected(chunk)
        if protected is not None:
            # They are kept whatever the threshold is, so they count as if they were above it.
            scores = scores.masked_fill(protected, torch.inf)
        shape = scores.shape[:3]
        lengths = chunk.lengths.expand(shape)
        rows_k = self.budget.rows_k(lengths)
        wanted = rows_k < lengths
        counted = chunk.counted()
        if counted is not None:
            wanted = wanted & counted.unsqueeze(1)
        if not bool(wanted.any()):
            return
        seen = lengths[wanted]
        self.shortest = min(self.shortest or int(seen.min()), int(seen.min()))
        self.longest = max(self.longest, int(seen.max()))
        bucket_of = _bucket(lengths)
        bins = ((torch.asinh(scores) + _REACH) / _STEP).clamp(0, BINS - 1).nan_to_num(0).to(torch.int64)
        visible = scores != -torch.inf
        for bucket in bucket_of[wanted].unique().tolist():
            self._add(bucket, bins, visible, wanted & (bucket_of == bucket), lengths, rows_k)

    def _add(self, bucket: int, bins: Tensor, visible: Tensor, rows: Tensor, lengths: Tensor, rows_k: Tensor) -> None:
        heads = bins.shape[1]
        entry = self.buckets.setdefault(
            bucket, _Bucket(torch.zeros(heads, BINS, dtype=torch.int64), torch.zeros(heads, dtype=torch.int64))
        )
        for head in range(heads):
            of_head = rows[:, head]
            chosen = bins[:, head][of_head][visible[:, head][of_head]]
            entry.counts[head] += torch.bincount(chosen, minlength=BINS).cpu()
        entry.budget += (rows_k * rows).sum((0, 2)).cpu()
        entry.rows += int(rows[:, 0].sum())
        entry.length_sum += int((lengths * rows)[:, 0].sum())

    def merge(self, other: ScoreHistogram) -> None:
        """Adds what another process observed of the same module; the result is that of one process, exactly."""
        for index, bucket in other.buckets.items():
            mine = self.buckets.setdefault(
                index, _Bucket(torch.zeros_like(bucket.counts), torch.zeros_like(bucket.budget))
            )
            mine.counts += bucket.counts
            mine.budget += bucket.budget
            mine.rows += bucket.rows
            mine.length_sum += bucket.length_sum
        self.shortest = min(filter(None, (self.shortest, other.shortest)), default=0)
        self.longest = max(self.longest, other.longest)

    def fit(self) -> ModuleThresholds | None:
        """Thresholds whose mean kept count is the budget's, in every bucket; None if no row was long enough."""
        buckets = [self.buckets[index] for index in sorted(self.buckets) if self.buckets[index].rows]
        if not buckets:
            return None
        return ModuleThresholds(
            lengths=torch.tensor([bucket.length_sum / bucket.rows for bucket in buckets]),
            theta=torch.stack([count_matched(bucket.counts, bucket.budget) for bucket in buckets], 1),
            shortest=self.shortest,
            longest=self.longest,
        )


def count_matched(counts: Tensor, budget: Tensor) -> Tensor:
    """The score [H] that exactly `budget` [H] of the counted scores [H, BINS] exceed, linear within a bin."""
    above = counts.flip(-1).cumsum(-1).flip(-1)
    # The last bin, from the top, that still has to be cut: the first from below where `above` falls under the budget.
    index = (above >= budget.unsqueeze(-1)).sum(-1).clamp(min=1) - 1
    inside = counts.gather(-1, index.unsqueeze(-1)).squeeze(-1).clamp(min=1)
    taken = budget - (above.gather(-1, index.unsqueeze(-1)).squeeze(-1) - inside)
    upper = (index + 1) * _STEP - _REACH
    return torch.sinh(upper.double() - taken.double() / inside.double() * _STEP).float()


def _bucket(lengths: Tensor) -> Tensor:
    return torch.bucketize(lengths.clamp(min=1).cpu(), _EDGES, right=True).to(lengths.device)
