# mypy: allow-untyped-defs, allow-untyped-calls
"""Sums of value rows, for the mean that V-mean compensation gives the mass of dropped keys to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.visibility import FullMask
from .triton_finish import Mean
from .triton_row_places import place_of, splits_of
from .triton_sizes import padded
from .triton_tiles import Call, row_ranges

# Elements of a mask that are widened at a time: 64 MB.
MASK_ELEMENTS = 2**24
# Value rows that a program adds up at a time.
ROWS = 64


def mean_of(inputs: AttentionInputs, call: Call) -> Mean:
    """Sums of value rows for their mean: of a single query, the caller's or made here; under a mask those of each row;
    else, up to each key, those of the finite ones."""
    value, seen = inputs.value, inputs.visibility
    groups, keys = value.shape[1:3]
    mask = seen.visible if isinstance(seen, FullMask) else None
    if inputs.query.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        whole = _sum_of_single(value, call) if inputs.value_sum is None else inputs.value_sum.contiguous()
        return Mean(whole, None, None, None, 1, groups, keys)
    finite = value.isfinite().all(-1, keepdim=True)
    clean = value.where(finite, 0)
    if mask is not None:
        sums, sharing = _sums_under(mask, clean.float(), finite, inputs.query.shape[1])
        return Mean(None, None, None, place_of(sums), sharing, groups, keys)
    prefix = clean.cumsum(2, dtype=torch.float32).contiguous()
    broken = (~finite).squeeze(-1).cumsum(2, dtype=torch.int32).contiguous()
    return Mean(None, prefix, broken, None, 1, groups, keys)


def _sums_under(visible: Tensor, value: Tensor, finite: Tensor, heads: int) -> tuple[Tensor, int]:
    """The sum of the value rows that each row sees, NaN where one is not finite, and how many query heads share it.

    visible: bool [B or 1, H or 1, q, n]. value: float32 [B, G, n, E]. finite: [B, G, n, 1]. -> [B, G or H, q, E]
    """
    sharing = heads // value.shape[1]
    if visible.shape[1] > 1:
        value, finite, sharing = (*(part.repeat_interleave(sharing, 1) for part in (value, finite)), 1)
    sums = value.new_empty(len(value), heads // sharing, visible.shape[2], value.shape[3])
    rows = max(1, MASK_ELEMENTS // max(1, visible.shape[0] * visible.shape[1] * visible.shape[3]))
    for start in range(0, visible.shape[2], rows):
        seen = visible[:, :, start : start + rows].float()
        broken = seen @ (~finite).float() > 0
        sums[:, :, start : start + rows] = (seen @ value).masked_fill(broken, torch.nan)
    return sums, sharing


def _sum_of_single(value: Tensor, call: Call) -> Tensor:
    """The sum of the value rows that a single query sees, float32 [B, G, E]."""
    batch, groups, keys, width = value.shape
    splits = splits_of(batch * groups, keys)
    sums = torch.empty(splits, batch, groups, width, dtype=torch.float32, device=value.device)
    sum_values[(splits * batch * groups,)](
        call, sums, splits, groups, V_WIDTH=width, V_BLOCK=padded(width), N=ROWS, num_warps=4
    )
    return sums.sum(0)


@triton.jit(do_not_specialize=["splits"])
def sum_values(call, sums, splits, groups, V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr, N: tl.constexpr):
    """A program for each split of the keys of each sequence and KV head; sums: [splits, B, G, E]."""
    split, pair = tl.program_id(0) % splits, tl.program_id(0) // splits
    batch, group = (pair // groups).to(tl.int64), (pair % groups).to(tl.int64)
    first, last = row_ranges(call, batch, 0, True)
    share = tl.cdiv(tl.maximum(last - first, 0), splits)
    begin = first + split * share
    end = tl.minimum(begin + share, last)
    dims, offsets = tl.arange(0, V_BLOCK), tl.arange(0, N)
    rows = call.value.at + batch * call.value.batch + group * call.value.head + dims[None, :]
    total = tl.zeros([V_BLOCK], tl.float32)
    for at in range(begin, end, N):
        columns = at + offsets
        visible = columns < end
        if call.mask is not None:  # one for all heads
            visible &= (
                tl.load(
                    call.mask.at + batch * call.mask.batch + columns.to(tl.int64) * call.mask.column,
                    mask=visible,
                    other=0,
                )
                != 0
            )
        inside = visible[:, None] & (dims < V_WIDTH)[None, :]
        v = tl.load(rows + columns.to(tl.int64)[:, None] * call.value.row, mask=inside, other=0.0)
        total += tl.sum(v.to(tl.float32), 0)
    place = (split * (tl.num_programs(0) // splits) + pair) * V_WIDTH
    tl.store(sums + place + dims, total, mask=dims < V_WIDTH)
