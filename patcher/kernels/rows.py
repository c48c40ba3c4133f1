"""Top-k and top-theta attention by the native library: what `attend_rows` does in torch, faster.

A call is handed over as addresses, sizes and strides, in the order in which csrc/module.cpp reads them. Everything is
checked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import UsageError
from ..methods.chunk import AttentionInputs, Observer, RowCounts
from ..methods.distance_bias import DistanceBias
from ..methods.rounded_keys import RoundedKeys
from ..methods.top_k import TopK
from ..methods.top_theta import DENOMINATORS, PLACEMENTS, TopTheta
from ..methods.visibility import RowRanges
from .arguments import NOWHERE, Place, attention_refusal, contiguous, located, strided
from .library import native
from .short_rows import fill_short_rows

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

# As csrc/attention.h numbers them.
DENOMINATOR = {name: number for number, name in enumerate(DENOMINATORS)}
PLACEMENT = {name: number for number, name in enumerate(PLACEMENTS, start=1)}  # 0: exact top-k

# By distance a bias has so few numbers that it may be widened for every call.
SHORT_BIAS = (torch.float32, torch.bfloat16)

NO_TABLE = (0,) * 6
UNROUNDED = (0,) * 5
UNCOUNTED = (0,) * 4

Method = TopK | TopTheta

NAME = "native"  # of this way through a call, for `paths`


def refusal(inputs: AttentionInputs, method: Method, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if the native library takes it."""
    shared = attention_refusal(inputs, observer)
    if shared is not None:
        return shared
    if not isinstance(inputs.visibility, RowRanges):
        return "a mask that is no range of keys per row"
    if method.protect_first or method.protect_recent:
        return "protected keys"
    return None if inputs.bias is None else _bias_refusal(inputs.bias)


def _bias_refusal(bias: Tensor | DistanceBias) -> str | None:
    by_distance = isinstance(bias, DistanceBias)
    numbers: Tensor = bias.by_distance if by_distance else bias  # type: ignore[union-attr, assignment]
    if numbers.requires_grad or numbers.dtype not in (SHORT_BIAS if by_distance else (torch.float32,)):
        return "a position bias that is trained or not float32"
    return "a position bias that hides keys" if bool(torch.isinf(numbers).any()) else None


def attend(
    inputs: AttentionInputs,
    method: Method,
    thresholds: ModuleThresholds | None = None,
    *,
    count: bool = False,
    threads: int | None = None,
) -> tuple[Tensor, RowCounts | None]:
    """As method.attend, for a call that `refusal` has nothing against; UsageError where there is no library for it.

    What is kept differs only where two scores tie within rounding. Counts of several queries have no V rows. Where
    nothing is counted, torch's own attention may do the rows that are too short for the method.
    """
    library, visibility = native(), inputs.visibility
    if library is None or not isinstance(visibility, RowRanges):
        raise UsageError(f"the native library does not take this call: {refusal(inputs, method)}")
    query, value = inputs.query, inputs.value
    batch, heads, queries, width = query.shape
    _, groups, keys, value_width = value.shape
    single = queries == 1
    if single:
        run, out = library.step, value.new_empty(batch, heads, 1, value_width)
    else:  # as the caller wants it: rows of all heads side by side
        run, out = library.rows, value.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    out_at = out.data_ptr(), queries * heads * value_width, value_width, heads * value_width
    first, last = visibility.first, visibility.last
    done = fill_short_rows(out, inputs, method.min_length) if method.min_length and queries > 1 and not count else 0
    if done == queries:
        return out, None
    if done:
        query, first, last, out_at = query[:, :, done:], first[:, done:], last[:, done:], strided(out[:, :, done:])
        queries -= done
    query, query_at = located(query)
    key, key_at = located(inputs.key)  # a copy, if one was made, lives as long as its name
    value, value_at = located(value)
    first, last = contiguous(first), contiguous(last)
    sinks = None if inputs.sinks is None else inputs.sinks.detach().float().contiguous()
    _bias, bias_at = _located_bias(inputs.bias, batch, heads, queries, keys)
    value_sum = inputs.value_sum
    if value_sum is not None:
        value_sum = contiguous(value_sum if value_sum.dtype is torch.float64 else value_sum.double())
    counts, counts_at = _room_for_counts(batch, heads, groups, queries) if count else (None, UNCOUNTED)
    rounded = inputs.rounded if single else None
    if rounded is None and single and method.denominator == "rounded":
        rounded = RoundedKeys.room_for(key, keys)
    staged = run(
        batch,
        heads,
        groups,
        queries,
        keys,
        width,
        value_width,
        query.dtype is torch.bfloat16,
        query_at,
        key_at,
        value_at,
        out_at,
        inputs.scale,
        inputs.softcap or 0.0,
        bias_at,
        0 if sinks is None else sinks.data_ptr(),
        first.data_ptr(),
        last.data_ptr(),
        queries if batch > 1 and first.shape[0] > 1 else 0,
        method.numbers,
        _theta(method, thresholds, single),
        0 if value_sum is None else value_sum.data_ptr(),
        UNROUNDED if rounded is None else _rounded_at(rounded, keys),
        counts_at,
        threads or torch.get_num_threads(),
    )
    if rounded is not None:
        rounded.used = staged
    return out, None if counts is None else _row_counts(*counts, staged=bool(staged))


def _located_bias(
    bias: Tensor | DistanceBias | None, batch: int, heads: int, queries: int, keys: int
) -> tuple[Tensor | None, Place]:
    """A bias as the library reads it, [B, H, q, n], and where that lies. By distance it is read where it is: a query's
    row begins one entry before that of the query before it."""
    if bias is None:
        return None, NOWHERE
    if not isinstance(bias, DistanceBias):
        return located(bias.expand(batch, heads, queries, keys))
    by_distance = contiguous(bias.by_distance.float()).expand(batch, heads, -1)
    batch_step, head_step, _ = by_distance.stride()
    first_row = by_distance.data_ptr() + (queries - 1) * by_distance.element_size()
    return by_distance, (first_row, batch_step, head_step, -1)


def _room_for_counts(
    batch: int, heads: int, groups: int, queries: int
) -> tuple[tuple[Tensor, Tensor, Tensor | None], tuple[int, int, int, int]]:
    """Kept, flags, and of a single query V rows and keys read in full [2, B, G, 1]; and where they lie."""
    kept = torch.empty(batch, heads, queries, dtype=torch.int32)
    flags = torch.empty(batch, heads, queries, dtype=torch.uint8)
    if queries > 1:
        return (kept, flags, None), (kept.data_ptr(), flags.data_ptr(), 0, 0)
    read = torch.empty(2, batch, groups, 1, dtype=torch.int32)
    return (kept, flags, read), (kept.data_ptr(), flags.data_ptr(), read[0].data_ptr(), read[1].data_ptr())


def _row_counts(kept: Tensor, flags: Tensor, read: Tensor | None, *, staged: bool) -> RowCounts:
    v_rows, k_rows = (None, None) if read is None else read.long()
    return RowCounts(kept.long(), (flags & 1).bool(), (flags & 2).bool(), v_rows, k_rows if staged else None)


def _rounded_at(rounded: RoundedKeys, keys: int) -> tuple[int, ...]:
    """Where rounded keys lie, and their panels; UsageError if there is no room for so many."""
    if rounded.room < keys:
        raise UsageError(f"rounded keys with room for {rounded.room} do not go with {keys} keys: enlarge them")
    parts = (rounded.codes, rounded.steps, rounded.errors, rounded.filled)
    return *(part.data_ptr() for part in parts), rounded.codes.shape[2]


def _theta(method: Method, thresholds: ModuleThresholds | None, single: bool) -> tuple[int, ...]:
    """Placement, min_keep, denominator and the threshold table. single: several queries have no rounded denominator."""
    denominator = DENOMINATOR["exact" if method.denominator == "rounded" and not single else method.denominator]
    if not isinstance(method, TopTheta):
        return 0, 0, denominator, *NO_TABLE
    numbers = PLACEMENT[method.placement], method.min_keep, denominator
    if thresholds is None:
        return *numbers, *NO_TABLE
    columns = thresholds.lengths.shape[0]
    return *numbers, *thresholds.addresses(), columns, thresholds.shortest, thresholds.longest
