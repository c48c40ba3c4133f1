"""Attention as torch.compile and torch.export trace it: everything here is plain tensor work or the one operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels.operator import attention, call_text, table_tensors
from ..methods import asking
from ..methods.distance_bias import DistanceBias
from ..methods.visibility import FullMask
from .masks import bias_of, is_row_ranges, unmasked, visible_and_added

if TYPE_CHECKING:
    from .attention import ModulePatch

DENSE = call_text("a module that is not patched", None)


class AttentionCall(NamedTuple):
    """What a module hands its attention function; position_bias is the model's own, sinks the learned ones.

    query [B, H, q, D], key [B, G, n, D], value [B, G, n, E]. patch: None for a module that stays dense.
    """

    patch: ModulePatch | None
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    position_bias: Tensor | None
    sinks: Tensor | None
    causal: bool
    scale: float
    softcap: float | None


def leaves_graph(call: AttentionCall, dropout: float) -> bool:
    """Whether a call that is being compiled has to run outside the graph.

    What counts or calibrates keeps its own books in Python, dropout and gradients take the torch way, and a method that
    no recipe names cannot be told to the operator. torch.export knows no outside; what it makes has no gradients.
    """
    patch = call.patch
    if patch is not None and (patch.meter is not None or patch.observer is not None or patch.text is None):
        return True
    if dropout:
        return True
    tensors = (call.query, call.key, call.value, call.position_bias, call.sinks)
    trains = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return trains and torch.compiler.is_dynamo_compiling()


def attend_in_graph(call: AttentionCall) -> Tensor:
    """Attention [B, q, H, E] as one node of the graph. Calls and ways taken are not counted."""
    query, key, value = call.query, call.key, call.value
    queries, keys = query.shape[2], key.shape[2]
    first, last, gaps, visible, added = _trace_mask(call.mask, queries, keys, call.causal, query.device)
    bias = bias_of(call.position_bias, added, queries, keys)
    added = bias.by_distance if isinstance(bias, DistanceBias) else bias
    text, table = (DENSE, None) if call.patch is None else (call.patch.text, call.patch.thresholds)
    tensors = table_tensors(table, query.device)
    return attention(
        query, key, value, first, last, gaps, visible, added, call.sinks, tensors, call.scale, call.softcap, text
    )


def _trace_mask(
    mask: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What read_mask says, without a look at the data: first, last, gaps and visible of the operator, and the additive
    part of a float mask. Equal for all layers, so a compiler computes it once. On a GPU the operator asks for no gaps:
    what `visible` says stands alone."""
    if mask is None:
        ranges = unmasked(queries, keys, causal, device)
        return ranges.first, ranges.last, None, None, None
    mask = mask.to(device)
    if is_row_ranges(mask):
        first, last, _ = mask[:, 0].to(torch.int64).unbind(-1)
        return first, last, None, None, None
    visible, added = visible_and_added(mask, queries, keys)
    hull = FullMask(visible).hull()
    gaps = (visible.sum(-1) != hull.lengths()).any() if asking.answers(visible) else None
    return hull.first, hull.last, gaps, visible, added
