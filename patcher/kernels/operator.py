"""What a patched module does, as one torch operator, so that torch.compile keeps a model in one graph.

What is kept depends on the data, which no graph can hold: to the compiler an operator is a black box whose output has a
known shape. All that it needs is among its arguments, so a graph stands for itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import NotPatchableError
from ..methods import (
    ATTENTION_METHODS,
    AttentionInputs,
    AttentionMethod,
    FullMask,
    RowRanges,
    TopKFeedForward,
    Visibility,
    asking,
    attend_rows,
    method_from_dict,
    method_to_dict,
)
from ..methods.distance_bias import DistanceBias
from ..table_check import check_table
from ..thresholds import ModuleThresholds
from . import feed_forward_kernel_of, kernel_of

# Parsed calls that are remembered: one for each module of a few models.
CALLS = 4096


def call_text(name: str, method: AttentionMethod | None, table: ModuleThresholds | None = None) -> str | None:
    """What the operator has to know of a module beside tensors, as JSON; method None is dense attention.

    None for a class of method that no recipe has: it could not be read back.
    """
    if method is not None and ATTENTION_METHODS.get(method.name) is not type(method):
        return None
    facts = None
    if table is not None:
        facts = {part: getattr(table, part) for part in ("shortest", "longest", "placement", "scale")}
    return json.dumps({"name": name, "method": None if method is None else method_to_dict(method), "table": facts})


def table_tensors(table: ModuleThresholds | None, device: torch.device) -> list[Tensor]:
    """The tensors of a threshold table on a device, for the operator; none for no table."""
    return [] if table is None else table.tensors(device)


@dataclass
class _Call:
    """What call_text told. thresholds: on a CPU the table of the last call, made of `given`, because checking a table
    takes longer than a short step of attention. On a GPU, where none is checked, nothing may outlive a call: it would
    lie in the memory of the CUDA graph that is being made."""

    name: str
    method: AttentionMethod | None
    table: dict[str, Any] | None
    given: list[Tensor] = field(default_factory=list)
    thresholds: ModuleThresholds | None = None

    def thresholds_of(self, tensors: list[Tensor]) -> ModuleThresholds | None:
        if self.table is None:
            return None
        if self.thresholds is None or [*map(id, self.given)] != [*map(id, tensors)]:
            lengths, theta, *dropped = tensors
            table = ModuleThresholds(lengths, theta, dropped=dropped[0] if dropped else None, **self.table)
            if not asking.answers(theta):
                return table
            self.given, self.thresholds = tensors, table
        return self.thresholds


@lru_cache(CALLS)
def _read(text: str) -> _Call:
    content = json.loads(text)
    method: Any = None if content["method"] is None else method_from_dict(content["method"])
    return _Call(content["name"], method, content["table"])


@cache
def _told(shortest: int, longest: int) -> set[str]:
    """The warnings given on tables of one range: a graph does not know which of its modules belong to one model."""
    return set()


@torch.library.custom_op("hf_sparsify::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: Tensor,
    last: Tensor,
    gaps: Tensor | None,
    visible: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    table: list[Tensor],
    scale: float,
    softcap: float | None,
    call: str,
) -> Tensor:
    """Attention [B, q, H, E] in the dtype of value, contiguous; tensors and numbers as in AttentionInputs.

    bias: by distance where it has three dimensions. first, last: int64 [B or 1, q], as in RowRanges. gaps: bool [],
    whether `visible`, bool [B or 1, H or 1, q, n], says what the ranges, then its hull, cannot. Both None where the
    ranges say it all.
    Without gaps `visible` counts, if there is one; so it does on a GPU, which nobody asks.
    table: see table_tensors. call: see call_text.
    Nothing is carried from step to step here, as a graph has no memory: V-mean compensation reads the whole cache, and
    the rounded denominator rounds all keys anew. There is no backward pass. Raises NotPatchableError and
    RecipeMismatchError as the method does.
    """
    visibility: Visibility = (ranges := RowRanges(first, last))
    known = gaps is not None and asking.answers(gaps)
    if visible is not None and not (known and not bool(gaps)):
        visibility = FullMask(visible, known_hull=ranges)
    added = bias if bias is None or bias.ndim == 4 else DistanceBias(bias, query.shape[2])
    inputs = AttentionInputs(query, key, value, visibility, scale, added, softcap, sinks)
    with torch.no_grad():
        out = _attend(_read(call), inputs, table).transpose(1, 2).contiguous()
    return out.view(out.shape)  # a single query may lie as if there were others, which the compiler does not expect


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    return value.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def _attend(call: _Call, inputs: AttentionInputs, table: list[Tensor]) -> Tensor:
    """The output [B, H, q, E], by the native kernel where that takes the call."""
    method, thresholds = call.method, call.thresholds_of(table)
    if method is None:
        return attend_rows(inputs)[0]
    if thresholds is not None:
        check_table(call.name, method, thresholds, inputs, _told(thresholds.shortest, thresholds.longest))
    kernel = kernel_of(method, inputs.query.device.type)
    try:
        if kernel is not None and kernel.refusal(inputs, method) is None:
            native: Tensor = kernel.attend(inputs, method, thresholds)[0]
            return native
        return method.attend(inputs, thresholds=thresholds)[0]
    except NotPatchableError as error:
        raise NotPatchableError(f"{call.name}: {error}") from None


@torch.library.custom_op("hf_sparsify::feed_forward", mutates_args=())
def feed_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, weight_is_rows: bool, k: int | None, keep: float | None
) -> Tensor:
    """The down-projection of the kept activations: hidden [..., d_ff] -> [..., d_model] in its dtype, contiguous.

    weight: as the module has it, [d_model, d_ff], or [d_ff, d_model] where weight_is_rows. bias: [d_model]. k, keep: as
    in TopKFeedForward. There is no backward pass.
    """
    method, view = TopKFeedForward(k, keep), weight if weight_is_rows else weight.t()
    with torch.no_grad():
        kernel = feed_forward_kernel_of(hidden.device.type)
        refused = kernel.refusal(hidden, view, method) is not None
        out = kernel.project_kept(hidden, weight, bias, weight_is_rows, method, refused)
        if out is None:
            out = torch.nn.functional.linear(method.mask(hidden), view.t(), bias).contiguous()
    return out.view(out.shape)


@feed_forward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, weight_is_rows: bool, *others: Any) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], weight.shape[1 if weight_is_rows else 0])
