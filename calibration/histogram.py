"""Streaming statistics of one module's attention scores: integers on the fixed grid of grid.py.

Memory does not grow with the number of samples (8 KB a query head and bucket of row lengths), order and batching of
the samples do not matter, and parts that were counted apart add up exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, NotPatchableError
from ..patcher.methods.budget import Budget
from ..patcher.methods.chunk import Chunk
from ..patcher.methods.top_theta import reference
from .grid import BINS, bins_of, buckets_of

# Masses are whole numbers of this unit, because sums of whole numbers do not depend on their order.
MASS_UNIT = 2.0**-24

Counts = dict[int, Tensor]


class ScoreHistogram:
    """Observes one module (it is an Observer): every row that sees at least two keys, whatever its budget is, so that
    thresholds for any k can be read later. Rows shorter than the budget's min_length are always dense: they are not
    counted, and neither are padding queries.

    budget: of the module; its protected keys count as if they were above any threshold. placement: see TopTheta.
    scale, nature: see ModuleThresholds; the scale is that of the scores seen last. limits, mass: whether to count these
    too.

    What was counted: rows, int64 [longest + 1], rows of each length, the same in every head. By bucket of row lengths,
    int64 [H, BINS]: counts, the keys in each bin; limits, of rows longer than their budget the first value that exact
    top-k would drop, for the mean estimator; mass, the sum of exp(score - row maximum) of the keys in each bin, in
    units of MASS_UNIT, for the offline denominator. NotPatchableError where heads see different keys.
    """

    def __init__(
        self,
        budget: Budget,
        placement: str = "post-softmax",
        *,
        scale: float | None = None,
        nature: str | None = None,
        limits: bool = False,
        mass: bool = False,
    ) -> None:
        self.budget, self.placement = budget, placement
        self.scale, self.nature = scale, nature
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.counts: Counts = {}
        self.limits: Counts | None = {} if limits else None
        self.mass: Counts | None = {} if mass else None

    def empty(self) -> ScoreHistogram:
        """Another one for the same module that has seen nothing."""
        return ScoreHistogram(
            self.budget,
            self.placement,
            scale=self.scale,
            nature=self.nature,
            limits=self.limits is not None,
            mass=self.mass is not None,
        )

    def __call__(self, chunk: Chunk) -> None:
        """Adds the scores of a chunk."""
        if chunk.lengths.shape[1] > 1 and bool((chunk.lengths != chunk.lengths[:, :1]).any()):
            raise NotPatchableError(
                "thresholds cannot be fitted where heads see different keys: leave this module out (--set NAME=none)"
            )
        self.scale = float(chunk.scale)
        batch, heads, rows = chunk.scores.shape[:3]
        lengths = chunk.lengths.expand(batch, heads, rows)
        wanted = lengths >= max(2, self.budget.min_length)
        counted = chunk.counted()
        if counted is not None:
            wanted = wanted & counted.unsqueeze(1)
        if not bool(wanted.any()):
            return
        self.rows = _sum(self.rows, torch.bincount(lengths[:, 0][wanted[:, 0]]).cpu())
        values = (chunk.scores - reference(chunk, self.placement)).float()
        protected = self.budget.protected(chunk)
        if protected is not None:
            values = values.masked_fill(protected, torch.inf)
        cells = _Cells(lengths, wanted)
        index = cells.index(values).masked_fill_(chunk.scores == -torch.inf, cells.nowhere)
        cells.add(self.counts, torch.bincount(index.flatten(), minlength=cells.size))
        if self.mass is not None:
            mass = ((chunk.scores - chunk.row_max).exp().double() / MASS_UNIT).round().long()
            sums = mass.new_zeros(cells.size).scatter_add_(0, index.flatten().long(), mass.flatten())
            cells.add(self.mass, sums)
        if self.limits is not None:
            self._add_limits(self.limits, values.masked_fill(chunk.scores == -torch.inf, -torch.inf), lengths, wanted)

    def _add_limits(self, limits: Counts, values: Tensor, lengths: Tensor, wanted: Tensor) -> None:
        rows_k = self.budget.rows_k(lengths)
        wanted = wanted & (rows_k < lengths)
        if not bool(wanted.any()):
            return
        ranked = values.topk(int(rows_k[wanted].max()) + 1, dim=-1).values
        dropped = ranked.gather(-1, rows_k.clamp(max=ranked.shape[-1] - 1).unsqueeze(-1))
        cells = _Cells(lengths, wanted)
        cells.add(limits, torch.bincount(cells.index(dropped).flatten(), minlength=cells.size))

    def merge(self, other: ScoreHistogram) -> None:
        """Adds what another one has counted of the same module; the result is that of a single one, exactly.

        DataError if the other one counts something else.
        """
        if self.settings() != other.settings() or len({self.scale, other.scale} - {None}) > 1:
            raise DataError("histograms that count different things cannot be added: calibrate anew")
        self.scale = other.scale if self.scale is None else self.scale
        self.rows = _sum(self.rows, other.rows)
        for mine, theirs in zip(self.parts().values(), other.parts().values(), strict=True):
            for bucket, counts in theirs.items():
                _add(mine, bucket, counts)

    def parts(self) -> dict[str, Counts]:
        """What is counted by bucket, by name."""
        parts = {"counts": self.counts, "limits": self.limits, "mass": self.mass}
        return {name: part for name, part in parts.items() if part is not None}

    def settings(self) -> tuple[object, ...]:
        """What two have to share for their counts to mean the same, beside the scale if both have seen something."""
        return (self.budget, self.placement, self.nature, self.limits is not None, self.mass is not None)


class _Cells:
    """One cell for each query head and bucket of row lengths that occur in a chunk, one more for unwanted rows.

    lengths: int64 [B, H, c]; wanted: bool like it. nowhere: the index that counts for nothing.
    """

    def __init__(self, lengths: Tensor, wanted: Tensor) -> None:
        buckets = buckets_of(lengths)
        seen = buckets[wanted]
        self.heads, self.first = lengths.shape[1], int(seen.min())
        self.buckets = int(seen.max()) - self.first + 1
        last = self.heads * self.buckets
        head = torch.arange(self.heads, device=lengths.device).view(-1, 1)
        self.cell = torch.where(wanted, head * self.buckets + buckets - self.first, last)
        self.nowhere = last * BINS
        self.size = self.nowhere + BINS

    def index(self, values: Tensor) -> Tensor:
        """int32 like values [B, H, c, m]: bin of a value within its row's cell."""
        return bins_of(values).add_((self.cell * BINS).int().unsqueeze(-1))

    def add(self, counts: Counts, tally: Tensor) -> None:
        """Adds int64 [size] to the counts by bucket."""
        whole = tally[: self.nowhere].view(self.heads, self.buckets, BINS).cpu()
        for place in range(self.buckets):
            part = whole[:, place]
            if bool(part.any()):
                _add(counts, self.first + place, part)


def _add(counts: Counts, bucket: int, more: Tensor) -> None:
    if bucket in counts:
        counts[bucket] += more
    else:
        counts[bucket] = more.clone()


def _sum(left: Tensor, right: Tensor) -> Tensor:
    """Two vectors added, the shorter one as if zeros followed."""
    if len(left) < len(right):
        left, right = right, left
    total = left.clone()
    total[: len(right)] += right
    return total
