"""Top-k and top-theta attention by the native library: what `attend_rows` does in torch, faster.

A call is handed over as addresses, sizes and strides, in the order in which csrc/module.cpp reads them. Everything is
checked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import UsageError
from ..methods.budget import exact_share
from ..methods.chunk import AttentionInputs, Observer, RowCounts
from ..methods.compensation import COMPENSATIONS
from ..methods.rounded_keys import RoundedKeys
from ..methods.top_k import TopK
from ..methods.top_theta import DENOMINATORS, PLACEMENTS, TopTheta
from ..methods.visibility import RowRanges
from .arguments import MOST_KEYS, address, as_rows, attention_refusal, contiguous, strided
from .library import native
from .short_rows import fill_short_rows

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

# As csrc/attention.h numbers them.
COMPENSATION = {name: number for number, name in enumerate(COMPENSATIONS)}
DENOMINATOR = {name: number for number, name in enumerate(DENOMINATORS)}
PLACEMENT = {name: number for number, name in enumerate(PLACEMENTS, start=1)}  # 0: exact top-k

Method = TopK | TopTheta


def refusal(inputs: AttentionInputs, method: Method, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if the native library takes it."""
    shared = attention_refusal(inputs, observer)
    if shared is not None:
        return shared
    if not isinstance(inputs.visibility, RowRanges):
        return "a mask that is no range of keys per row"
    if method.protect_first or method.protect_recent:
        return "protected keys"
    if inputs.key.shape[2] >= MOST_KEYS:
        return f"{inputs.key.shape[2]} keys"
    bias = inputs.bias
    if bias is not None and (bias.requires_grad or (bias.dtype != torch.float32)):
        return "a position bias that is trained or not float32"
    if bias is not None and bool(torch.isinf(bias).any()):
        return "a position bias that hides keys"
    return None


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
    query, key, value = as_rows(inputs.query), as_rows(inputs.key), as_rows(inputs.value)
    batch, heads, queries, width = query.shape
    _, groups, keys, value_width = value.shape
    single = queries == 1
    if single:
        run, out = library.step, value.new_empty(batch, heads, 1, value_width)
    else:  # as the caller wants it: rows of all heads side by side
        run, out = library.rows, value.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    first, last, rest = visibility.first, visibility.last, out
    done = fill_short_rows(out, inputs, method.min_length) if method.min_length and queries > 1 and not count else 0
    if done == queries:
        return out, None
    if done:
        query, first, last, rest = query[:, :, done:], first[:, done:], last[:, done:], out[:, :, done:]
        queries -= done
    first, last = contiguous(first), contiguous(last)
    sinks = None if inputs.sinks is None else inputs.sinks.detach().float().contiguous()
    bias = None if inputs.bias is None else as_rows(inputs.bias.expand(batch, heads, queries, keys))
    value_sum = inputs.value_sum
    if value_sum is not None and value_sum.dtype is not torch.float64:
        value_sum = value_sum.double()
    rounded = inputs.rounded if single else None
    if rounded is None and single and method.denominator == "rounded":
        rounded = RoundedKeys.room_for(key, keys)
    kept = flags = v_rows = k_rows = None
    if count:
        kept = torch.empty(batch, heads, queries, dtype=torch.int32)
        flags = torch.empty(batch, heads, queries, dtype=torch.uint8)
        v_rows = torch.empty(batch, groups, 1, dtype=torch.int32) if queries == 1 else None
        k_rows = torch.empty(batch, groups, 1, dtype=torch.int32) if rounded is not None else None
    staged = run(
        batch,
        heads,
        groups,
        queries,
        keys,
        width,
        value_width,
        query.dtype is torch.bfloat16,
        *strided(query),
        *strided(key),
        *strided(value),
        *strided(rest),
        inputs.scale,
        inputs.softcap or 0.0,
        *strided(bias),
        address(sinks),
        first.data_ptr(),
        last.data_ptr(),
        queries if first.shape[0] > 1 else 0,
        method.k or 0,
        *((0, 1) if method.keep is None else exact_share(method.keep).as_integer_ratio()),
        min(method.min_length, MOST_KEYS),
        *_table(method, thresholds),
        COMPENSATION[method.compensation],
        DENOMINATOR[method.denominator if single or method.denominator != "rounded" else "exact"],
        method.v_mean == "dropped",
        0 if value_sum is None else contiguous(value_sum).data_ptr(),
        *_rounded_arguments(rounded, keys),
        address(kept),
        address(flags),
        address(v_rows),
        address(k_rows),
        threads or torch.get_num_threads(),
    )
    if rounded is not None:
        rounded.used = staged
    if kept is None or flags is None:
        return out, None
    v_rows = None if v_rows is None else v_rows.long()
    k_rows = None if k_rows is None or not staged else k_rows.long()
    return out, RowCounts(kept.long(), (flags & 1).bool(), (flags & 2).bool(), v_rows, k_rows)


def _rounded_arguments(rounded: RoundedKeys | None, keys: int) -> tuple[int, ...]:
    """Addresses and panels of rounded keys; UsageError if they do not have room for so many."""
    if rounded is None:
        return 0, 0, 0, 0, 0
    if rounded.room < keys:
        raise UsageError(f"rounded keys with room for {rounded.room} do not go with {keys} keys: enlarge them")
    parts = (rounded.codes, rounded.steps, rounded.errors, rounded.filled)
    return *(part.data_ptr() for part in parts), rounded.codes.shape[2]


def _table(method: Method, thresholds: ModuleThresholds | None) -> tuple[int, ...]:
    """Placement (0: none), min_keep and the threshold table."""
    if not isinstance(method, TopTheta):
        return 0, 0, 0, 0, 0, 0, 0, 0
    placement = PLACEMENT[method.placement]
    if thresholds is None:
        return placement, method.min_keep, 0, 0, 0, 0, 0, 0
    lengths, theta, dropped = thresholds.addresses()
    columns = thresholds.lengths.shape[0]
    return placement, method.min_keep, lengths, theta, dropped, columns, thresholds.shortest, thresholds.longest
