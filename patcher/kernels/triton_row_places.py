"""An attention call as the Triton kernels of top-k and top-theta read it: addresses and strides, found without looking
into a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.distance_bias import DistanceBias
from ..methods.top_k import TopK
from ..methods.top_theta import TopTheta
from ..methods.visibility import FullMask
from .triton_sizes import PROGRAMS, cdiv
from .triton_tiles import Budget, Call, Matrix, Place, Ranges, Table

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

# Fewer keys than these are not worth a split of their own; so many splits at most are put together one after another.
SPLIT_KEYS, MOST_SPLITS = 256, 64


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
    k, numerator, denominator, min_length, *_ = method.numbers
    table = None
    if isinstance(method, TopTheta) and thresholds is not None:
        numbers = thresholds.numbers(inputs.query.device)
        # As floats, of which a kernel has no versions by value.
        ends = float(thresholds.shortest), float(thresholds.longest)
        table = Table(*numbers, len(thresholds.lengths), *ends)
    return Budget(k, numerator, denominator, min_length, table)


def splits_of(tiles: int, keys: int) -> int:
    """Among how many programs the keys of a tile are shared."""
    return min(cdiv(PROGRAMS, tiles), cdiv(keys, SPLIT_KEYS), MOST_SPLITS)


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
