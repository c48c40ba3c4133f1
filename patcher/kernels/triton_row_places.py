"""An attention call as the Triton kernels of top-k and top-theta read it: addresses and strides, found without looking
into a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.distance_bias import DistanceBias
from ..methods.top_k import TopK
from ..methods.top_theta import TopTheta
from ..methods.visibility import FullMask
from .triton_finish import Mean
from .triton_tiles import Budget, Call, Matrix, Place, Ranges

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

# Elements of a mask that are widened at a time: 64 MB.
MASK_ELEMENTS = 2**24


def place_of(tensor: Tensor) -> Place:
    """Of a tensor [B, H, rows, width] whose rows are contiguous."""
    return Place(tensor, *tensor.stride()[:3])


def call_of(inputs: AttentionInputs) -> Call:
    """Copies what has rows that are not contiguous; the call holds on to the copies."""
    (batch, heads, queries, _), keys = inputs.query.shape, inputs.key.shape[2]
    query, key, value = (
        tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (inputs.query, inputs.key, inputs.value)
    )
    seen, mask, lengths = inputs.visibility, None, None
    if isinstance(seen, FullMask):
        visible = seen.visible.expand(batch, heads, queries, keys)
        mask = Matrix(visible, *visible.stride())
        lengths = _rows(seen.lengths(), batch, heads)
        seen = seen.hull()
    first, last = (ends.expand(batch, queries) for ends in (seen.first, seen.last))
    if first.stride() != last.stride():
        first, last = first.contiguous(), last.contiguous()
    ranges = Ranges(first, last, *first.stride())
    sinks = None if inputs.sinks is None else inputs.sinks.contiguous()
    return Call(
        place_of(query),
        place_of(key),
        place_of(value),
        ranges,
        mask,
        lengths,
        _bias(inputs.bias, batch, heads, queries, keys),
        sinks,
        inputs.scale,
        inputs.softcap,
        heads,
    )


def budget_of(inputs: AttentionInputs, method: TopK | TopTheta, thresholds: ModuleThresholds | None) -> Budget:
    """Of top-theta without a table no row has a threshold."""
    batch, heads, queries, _ = inputs.query.shape
    k, numerator, denominator, min_length, *_ = method.numbers
    theta, dropped = None, None
    if isinstance(method, TopTheta):
        lengths = inputs.visibility.lengths()
        if thresholds is None:
            known = torch.full((1, 1, 1), torch.nan, device=lengths.device).expand(batch, heads, queries)
        else:
            known = thresholds.lookup(lengths).float()
        theta = _rows(known, batch, heads)
        if thresholds is not None and method.denominator == "offline":
            dropped = _rows(thresholds.lookup_dropped(lengths).float(), batch, heads)
    return Budget(k, numerator, denominator, min_length, theta, dropped)


def mean_of(inputs: AttentionInputs) -> Mean:
    """Sums of value rows for their mean: the caller's; under a mask those of each row; or, up to each key, those of the
    finite ones."""
    value, single = inputs.value, inputs.query.shape[2] == 1
    groups, keys = value.shape[1:3]
    if single and inputs.value_sum is not None:
        return Mean(inputs.value_sum.contiguous(), None, None, None, 1, groups, keys)
    finite = value.isfinite().all(-1, keepdim=True)
    clean = value.where(finite, 0)
    if isinstance(inputs.visibility, FullMask):
        sums, sharing = _sums_under(inputs.visibility.visible, clean.float(), finite, inputs.query.shape[1])
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


def _rows(numbers: Tensor, batch: int, heads: int) -> Place:
    """A number for each row, [B or 1, H or 1, q]."""
    whole = numbers.expand(batch, heads, -1)
    return Place(whole, *whole.stride())


def _bias(bias: Tensor | DistanceBias | None, batch: int, heads: int, queries: int, keys: int) -> Matrix | None:
    """By distance, the row of a query begins one entry before that of the query before it."""
    if bias is None:
        return None
    if isinstance(bias, DistanceBias):
        from_first = bias.by_distance[..., queries - 1 :].expand(batch, heads, -1)
        by_batch, by_head, step = from_first.stride()
        return Matrix(from_first, by_batch, by_head, -step, step)
    whole = bias.expand(batch, heads, queries, keys)
    return Matrix(whole, *whole.stride())
