"""Top-k and top-theta attention by the native library: what `attend_rows` does in torch, faster.

A call is handed over as addresses, sizes and strides, in the order in which csrc/module.cpp reads them. Everything is
checked here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs, Observer, RowCounts
from ..methods.compensation import COMPENSATIONS
from ..methods.top_k import TopK
from ..methods.top_theta import DENOMINATORS, PLACEMENTS, TopTheta
from ..methods.visibility import RowRanges
from .library import native

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

WIDTHS = range(8, 257, 8)
MOST_KEYS = 2**24  # positions are compared as floats

Method = TopK | TopTheta


def refusal(inputs: AttentionInputs, method: Method, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if the native library takes it."""
    query, key, value = inputs.query, inputs.key, inputs.value
    if native() is None:
        return "no native library"
    if observer is not None:
        return "calibration looks at the scores"
    if inputs.dropout:
        return "dropout"
    if query.device.type != "cpu":
        return f"on {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16) or not query.dtype == key.dtype == value.dtype:
        return f"stored as {', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in (query, key, value)}))}"
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients"
    if not isinstance(inputs.visibility, RowRanges):
        return "a mask that is no range of keys per row"
    if query.shape[3] not in WIDTHS or value.shape[3] not in WIDTHS:
        return f"head size {query.shape[3]}"
    if method.protect_first or method.protect_recent:
        return "protected keys"
    if key.shape[2] >= MOST_KEYS:
        return f"{key.shape[2]} keys"
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
    """As method.attend, for a call that `refusal` has nothing against.

    What is kept differs only where two scores tie within rounding. Counts of several queries have no V rows.
    """
    library = native()
    query, key, value = (_rows(tensor) for tensor in (inputs.query, inputs.key, inputs.value))
    batch, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    out = torch.empty(batch, queries, heads, value.shape[3], dtype=value.dtype).transpose(1, 2)
    visibility = inputs.visibility
    first, last = visibility.first.contiguous(), visibility.last.contiguous()
    share = Fraction(0) if method.keep is None else Fraction(str(method.keep)).limit_denominator(10**9)
    sinks = None if inputs.sinks is None else inputs.sinks.detach().float().contiguous()
    bias = None if inputs.bias is None else _rows(inputs.bias.expand(batch, heads, queries, keys))
    kept = flags = v_rows = None
    if count:
        kept = torch.empty(batch, heads, queries, dtype=torch.int32)
        flags = torch.empty(batch, heads, queries, dtype=torch.uint8)
        v_rows = torch.empty(batch, groups, 1, dtype=torch.int32) if queries == 1 else None
    value_sum = None if inputs.value_sum is None else inputs.value_sum.double().contiguous()
    (library.step if queries == 1 else library.rows)(
        batch,
        heads,
        groups,
        queries,
        keys,
        width,
        value.shape[3],
        query.dtype == torch.bfloat16,
        *_strided(query),
        *_strided(key),
        *_strided(value),
        *_strided(out),
        inputs.scale,
        inputs.softcap or 0.0,
        *_strided(bias),
        _address(sinks),
        first.data_ptr(),
        last.data_ptr(),
        queries if len(first) > 1 else 0,
        method.k or 0,
        share.numerator,
        share.denominator,
        *_table(method, thresholds),
        COMPENSATIONS.index(method.compensation),
        DENOMINATORS.index(method.denominator) if isinstance(method, TopTheta) else 0,
        method.v_mean == "dropped",
        _address(value_sum),
        _address(kept),
        _address(flags),
        _address(v_rows),
        threads or torch.get_num_threads(),
    )
    if kept is None or flags is None:
        return out, None
    counts = RowCounts(kept.long(), (flags & 1).bool(), (flags & 2).bool(), None if v_rows is None else v_rows.long())
    return out, counts


def _table(method: Method, thresholds: ModuleThresholds | None) -> tuple[int, ...]:
    """Placement (0: none), min_keep and the threshold table."""
    if not isinstance(method, TopTheta):
        return 0, 0, 0, 0, 0, 0, 0, 0
    placement = PLACEMENTS.index(method.placement) + 1
    if thresholds is None:
        return placement, method.min_keep, 0, 0, 0, 0, 0, 0
    lengths, theta, dropped = thresholds.native_tables()
    offline = method.denominator == "offline"
    return (
        placement,
        method.min_keep,
        lengths.data_ptr(),
        theta.data_ptr(),
        _address(dropped if offline else None),
        len(lengths),
        thresholds.shortest,
        thresholds.longest,
    )


def _rows(tensor: Tensor) -> Tensor:
    """The same tensor, with elements of a row side by side."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _strided(tensor: Tensor | None) -> tuple[int, int, int, int]:
    if tensor is None:
        return 0, 0, 0, 0
    return tensor.data_ptr(), *tensor.stride()[:3]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
