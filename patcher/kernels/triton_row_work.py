"""Launches the Triton kernels of top-k and top-theta for a chunk of queries, with the room that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs, RowCounts
from ..methods.top_k import TopK
from ..methods.top_theta import TopTheta
from .triton_finish import Result
from .triton_library import architecture
from .triton_means import mean_of
from .triton_row_places import budget_of, call_of, place_of, splits_of
from .triton_scores import score_rows
from .triton_select import Chosen, select_rows
from .triton_sizes import PROGRAMS, cdiv, padded
from .triton_tiles import Parts
from .triton_weigh import Sums, combine_rows, weigh_rows

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

# Scores that are written down at a time, in elements: a 64th of a GPU's memory, or 256 MB.
SCORES, SCORES_OF_MEMORY = 2**26, 64 * 4
# Scores that a program of select_rows reads at a time; four times as many where there are too few rows for a GPU.
SELECT_KEYS = 2048
# Blocks of K that are on their way at a time.
STAGES = 2
# Of so many rows to a KV head scores are written down rather than made twice: a number is less to read than a key.
FEW_ROWS = 16
# Room for a row of scores is a multiple of this, so that no length has kernels of its own.
ALIGNED = 16


class Tile(NamedTuple):
    """Rows and keys of a tile, and the warps that work on it."""

    rows: int
    keys: int
    warps: int


def tile_of(inputs: AttentionInputs, rows: int) -> Tile:
    """What fits into the registers and the 99 KB of shared memory of common GPUs (tests/triton_builds.py tells). tl.dot
    needs 16 rows at least."""
    widest, wide_numbers = padded(max(inputs.query.shape[3], inputs.value.shape[3])), inputs.query.itemsize > 2
    if wide_numbers:
        most, keys, warps = (16 if widest > 128 else 32), 32, 8
    else:
        most, keys, warps = (32, 32, 8) if widest > 128 else (64, 64, 8 if widest > 64 else 4)
        warps = 4 if rows <= 16 else warps
        if inputs.bias is not None:  # which is as large as the scores
            keys = 32
    if architecture() // 10 == 10:  # 64 rows are more than Triton 3.7 compiles for a B200
        most = min(most, 32)
    return Tile(min(padded(rows), most), keys, warps)


def room_for_scores(device: torch.device) -> int:
    """Scores that may be written down at a time."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return SCORES
    return torch.cuda.get_device_properties(device).total_memory // SCORES_OF_MEMORY


class RowKernels:
    """The kernels of one call. scored: rows may need exact top-k. chunk: queries at a time."""

    def __init__(
        self,
        inputs: AttentionInputs,
        method: TopK | TopTheta,
        thresholds: ModuleThresholds | None,
        out: Tensor,
        *,
        scored: bool,
        count: bool,
    ) -> None:
        self.batch, self.heads, self.queries, width = inputs.query.shape
        _, self.groups, self.keys, value_width = inputs.value.shape
        self.device, self.scored = out.device, scored
        self.call, self.budget = call_of(inputs), budget_of(inputs, method, thresholds)
        self.mean = mean_of(inputs, self.call) if method.compensation == "sdc+vmc" else None
        self.min_keep = method.min_keep if isinstance(method, TopTheta) else 0
        self.score_row = cdiv(self.keys, ALIGNED) * ALIGNED
        fit = room_for_scores(self.device) // (self.batch * self.heads * self.score_row) if scored else self.queries
        self.chunk = min(max(1, fit), self.queries)
        self.group = self.heads // self.groups
        self.tile = tile_of(inputs, self.group * self.chunk)
        placement = method.placement if isinstance(method, TopTheta) else "none"
        estimated = thresholds is not None and method.denominator in ("exp-threshold", "offline")
        count_v_rows = count and self.queries == 1 and self.group <= self.tile.rows
        self.result = self._room_for_result(out, count, count_v_rows)
        # Rows that keep their best key alone are known only after the first pass, too late to count V rows.
        self.one_pass = not scored and placement == "pre-softmax" and not count_v_rows
        self.stored = scored or (not self.one_pass and self.group * self.queries <= FEW_ROWS)
        self.sizes: dict[str, Any] = {"GROUP": self.group, "M": self.tile.rows, "N": self.tile.keys}
        self.key_sizes: dict[str, Any] = {"WIDTH": width, "BLOCK": padded(width)}
        self.value_sizes: dict[str, Any] = {"V_WIDTH": value_width, "V_BLOCK": padded(value_width)}
        compensated = method.compensation != "none"
        self.total = placement == "post-softmax" or (compensated and (scored or not estimated))
        self.ways: dict[str, Any] = {
            "PLACEMENT": placement,
            "DENOMINATOR": method.denominator if estimated else "exact",
            "COMPENSATION": method.compensation,
            "DROPPED": method.compensation == "sdc+vmc" and method.v_mean == "dropped",
            "TOTAL": self.total,
        }

    def run(self, start: int, count: int) -> None:
        """Writes the output and the counts of the queries start .. start + count."""
        rows, splits = self.batch * self.heads * count, self._splits(count)
        tiles = self._tiles(count)
        span = start, count, splits, rows
        options = {"num_warps": self.tile.warps, "num_stages": STAGES}
        parts = None if self.one_pass and splits == 1 else Parts(*self._numbers(splits, rows))
        work, chosen, sums = None, None, None
        if self.stored:
            work = torch.empty(rows, self.score_row, dtype=torch.float32, device=self.device)
        if self.scored:
            limit, _, tie = self._numbers(rows)
            chosen = Chosen(limit, tie, torch.empty(rows, dtype=torch.uint8, device=self.device))
        if not self.one_pass:
            score_rows[(tiles * splits,)](
                self.call,
                parts,
                work,
                self.score_row,
                *span,
                TOTAL=self.total,
                BEST=not self.scored,
                **self.key_sizes,
                **self.sizes,
                **options,
            )
        if self.scored:
            select_rows[(rows,)](
                self.call,
                self.budget,
                parts,
                chosen,
                work,
                self.score_row,
                *span,
                self.min_keep,
                PLACEMENT=self.ways["PLACEMENT"],
                N=SELECT_KEYS * (4 if rows < PROGRAMS else 1),
                num_warps=8,
            )
        if splits > 1:
            sums = self._room_for_sums(splits, rows)
        weigh_rows[(tiles * splits,)](
            self.call,
            self.budget,
            parts,
            chosen,
            work,
            self.score_row,
            sums,
            self.mean,
            self.result,
            *span,
            ONE_PASS=self.one_pass,
            **self.key_sizes,
            **self.value_sizes,
            **self.ways,
            **self.sizes,
            **options,
        )
        if splits > 1:
            sizes = {**self.value_sizes, "GROUP": self.group, "M": 1}
            combine_rows[(rows,)](
                self.call,
                self.budget,
                parts,
                chosen,
                sums,
                self.mean,
                self.result,
                *span,
                **self.ways,
                **sizes,
                num_warps=1,
            )

    def counts(self) -> RowCounts:
        """Of all chunks."""
        result = self.result
        v_rows = None if result.v_rows is None else result.v_rows.sum(0).view(self.batch, self.groups, 1)
        return RowCounts(result.kept, result.fallback.view(torch.bool), result.rescued.view(torch.bool), v_rows)

    def _tiles(self, count: int) -> int:
        return self.batch * self.groups * cdiv(count * self.group, self.tile.rows)

    def _splits(self, count: int) -> int:
        """Among how many programs the keys of a tile are shared."""
        return splits_of(self._tiles(count), self.keys)

    def _numbers(self, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
        """Room for two float32 and an int32 tensor."""
        first, second, third = torch.empty(3, *shape, dtype=torch.float32, device=self.device)
        return first, second, third.view(torch.int32)

    def _room_for_sums(self, splits: int, rows: int) -> Sums:
        width, dropped = self.value_sizes["V_WIDTH"], self.ways["DROPPED"]
        values = torch.empty(1 + dropped, splits, rows, width, dtype=torch.float32, device=self.device)
        return Sums(*self._numbers(splits, rows), values[0], values[1] if dropped else None)

    def _room_for_result(self, out: Tensor, count: bool, count_v_rows: bool) -> Result:
        kept, fallback, rescued, v_rows = None, None, None, None
        if count:
            shape = self.batch, self.heads, self.queries
            kept = torch.empty(shape, dtype=torch.int64, device=self.device)
            fallback, rescued = torch.empty(2, *shape, dtype=torch.uint8, device=self.device)
        if count_v_rows:
            pairs = self.batch * self.groups
            v_rows = torch.empty(self._splits(1), pairs, dtype=torch.int32, device=self.device)
        return Result(place_of(out), kept, fallback, rescued, v_rows, self.queries)
