"""Gradients of attention row by row, in memory that is linear in length.

Ordinary autograd would keep every chunk's scores and weights, together (queries x keys) of them. Here the forward pass
keeps its inputs, not copied, and which keys each row kept (see kept_keys.py): for k of n keys min(k x i, n / 8) bytes
per query and head, where i is the size of an integer up to n, and i more for the row. The backward pass computes
scores and weights again, a chunk at a time, as Gupta et al. 2021 (arXiv 2106.06899) do from kept scores.

The gradient is that of the hard selection: what was selected stays as it was, a dropped key has a gradient only where
compensation reads its score or its value, a threshold has none. Sums over queries and keys are float32 or wider. There
is no second derivative: asking for one (create_graph=True) raises RuntimeError. Under torch.func plain autograd runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import asking
from .chunk import AttentionInputs, Chunk, Selection
from .distance_bias import DistanceBias, bias_rows
from .dropout import dropout_mask
from .functional import transforms_active
from .kept_keys import Store, pack, taken, unpack
from .row_chunk import Span, by_group, chunk_of, grouped_query, scores_of, weights_of

if TYPE_CHECKING:
    from .rows import RowWork

Watch = Callable[[Chunk, Selection], None]


def needs_gradients(inputs: AttentionInputs) -> bool:
    """Whether derivatives may be asked for."""
    if transforms_active():
        return True
    return torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in _tensors(inputs))


def attend_with_gradients(inputs: AttentionInputs, work: RowWork, watch: Watch) -> Tensor:
    """As work.attend, differentiable in query, key, value, bias and sinks. Under torch.func by plain autograd."""
    if transforms_active():
        return work.attend(_with_tensors(inputs, _tensors(inputs)), watch)
    bare = _with_tensors(inputs, (None,) * 5)
    out: Tensor = _Rows.apply(*_tensors(inputs), bare, work, watch)
    return out


def _tensors(inputs: AttentionInputs) -> tuple[Tensor | None, ...]:
    bias = inputs.bias.by_distance if isinstance(inputs.bias, DistanceBias) else inputs.bias
    return inputs.query, inputs.key, inputs.value, bias, inputs.sinks


def _with_tensors(inputs: AttentionInputs, tensors: tuple[Any, ...]) -> AttentionInputs:
    """The same call on other tensors. A sum of values that somebody keeps has no gradient: it is computed."""
    query, key, value, bias, sinks = tensors
    if isinstance(inputs.bias, DistanceBias):
        bias = replace(inputs.bias, by_distance=bias)
    return replace(inputs, query=query, key=key, value=value, bias=bias, sinks=sinks, value_sum=None, rounded=None)


@dataclass(frozen=True)
class _Kept:
    """What a chunk kept. places: of what is packed, in the block that all chunks share; none where all was kept."""

    span: Span
    places: list[tuple[int, torch.dtype, torch.Size]]
    shape: torch.Size
    dropped_mass: Callable[[Chunk, Tensor], Tensor | None] | None

    def selection(self, block: Tensor) -> Selection:
        """The selection again."""
        parts = tuple(taken(block, *place) for place in self.places)
        return Selection(unpack(parts, self.shape) if parts else None, dropped_mass=self.dropped_mass)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *tensors, bare, work, watch = given
        ctx.bare, ctx.work, ctx.kept = bare, work, []
        store = Store(tensors[0].device)

        def keep(chunk: Chunk, selection: Selection) -> None:
            watch(chunk, selection)
            parts = () if selection.keep is None else pack(selection.keep)
            span = Span(chunk.start, chunk.stop, chunk.low, chunk.high)
            shape = chunk.scores.shape if selection.keep is None else selection.keep.shape
            ctx.kept.append(_Kept(span, [store.add(part) for part in parts], shape, selection.dropped_mass))

        out: Tensor = work.attend(_with_tensors(bare, tuple(tensors)), keep)
        ctx.save_for_backward(*tensors, store.whole())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let a loss linear in the output pass
            raise RuntimeError(
                "second derivatives through sparse attention are not supported: "
                "compute this part with the model unpatched, or without create_graph"
            )
        *tensors, block = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            gradients = _Gradients(_with_tensors(ctx.bare, tuple(tensors)), ctx.work, ctx.needs_input_grad[:5])
            for kept in ctx.kept:
                selection = kept.selection(block)
                if kept.span.low < kept.span.high:
                    gradients.add_chunk(kept.span, selection, grad[:, :, kept.span.start : kept.span.stop])
            return *gradients.found(tuple(tensors)), None, None, None


class _Gradients:
    """The gradients of a call, as its chunks add to them. None for a tensor that needs none."""

    def __init__(self, inputs: AttentionInputs, work: RowWork, needed: tuple[bool, ...]) -> None:
        self.inputs, self.work = inputs, work
        self.query, self.key, self.value, self.bias, self.sinks = (
            None if part is None or not wanted else _wide_zeros(part)
            for part, wanted in zip(_tensors(inputs), needed, strict=True)
        )
        self.through_scores = any(needed[:2]) or any(needed[3:])
        self.lengths, self.generator = inputs.visibility.lengths(), work.generator(inputs.query.device)
        # What a row does not see has a weight or a gradient of 0 there, and 0 * NaN would be NaN.
        self.finite = replace(inputs, query=_finite(inputs.query), key=_finite(inputs.key), value=_finite(inputs.value))
        self.broken = self.finite.value is not inputs.value

    def found(self, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Of query, key, value, bias and sinks, in their dtypes."""
        all_of = (self.query, self.key, self.value, self.bias, self.sinks)
        return [None if g is None else g.to(t.dtype) for g, t in zip(all_of, tensors, strict=True)]  # type: ignore[union-attr]

    def add_chunk(self, span: Span, selection: Selection, grad: Tensor) -> None:
        """Adds what a chunk gives. grad: of its output, [B, H, c, E]."""
        leaves, weights = self._weights(span, selection)
        groups, mask = self.inputs.key.shape[1], None
        if self.generator is not None:
            mask = dropout_mask(weights, self.inputs.dropout, self.generator)
        rows, used = by_group(grad.to(weights.dtype), groups), weights.detach()
        if self.value is not None:
            _add_product(self.value, span, by_group(used if mask is None else used * mask, groups), rows)
        if not self.through_scores:
            return
        of_weights = self._of_weights(span, used, rows)
        if mask is not None:
            of_weights *= mask
        del used, mask
        of_scores, *of_sinks = torch.autograd.grad(weights, leaves, of_weights)
        del weights, of_weights
        self._add_scores(span, of_scores)
        if self.sinks is not None:
            self.sinks += of_sinks[0]

    def _weights(self, span: Span, selection: Selection) -> tuple[list[Tensor], Tensor]:
        """The leaves, scores and sinks, and what weights they give under a selection."""
        inputs, hidden = self.inputs, self.inputs.visibility.hidden(*span)
        if selection.keep is not None and self.work.compensation == "none":
            hidden, selection = ~selection.keep, Selection(None)  # dropped keys matter as little as hidden ones
        leaves = [] if inputs.sinks is None else [inputs.sinks.detach().requires_grad_()]
        inputs = replace(inputs, sinks=leaves[0] if leaves else None)
        scores = scores_of(inputs, span, inputs.key[:, :, span.low : span.high])
        capped = inputs.softcap is not None
        if capped and hidden is not None:
            scores = scores.masked_fill(hidden, 0)  # a NaN that is hidden would be one in the gradient
        with torch.set_grad_enabled(capped):
            chunk = chunk_of(inputs, span, scores.requires_grad_(capped), hidden, self.lengths)
        if not capped:
            scores = chunk.scores.requires_grad_()  # the gradient is 0 where they are hidden
        with torch.enable_grad():
            weights = weights_of(chunk, selection, self.work.compensation, self.work.v_mean)
        return [scores, *leaves], weights

    def _of_weights(self, span: Span, weights: Tensor, rows: Tensor) -> Tensor:
        """The gradient of weights, alike, from that of the output rows [B, G, H / G x c, E]."""
        value = self.finite.value[:, :, span.low : span.high]
        of_weights = torch.matmul(rows, value.to(rows.dtype).mT).view(weights.shape)
        if not self.broken:
            return of_weights
        broken = (~self.inputs.value[:, :, span.low : span.high].isfinite()).any(-1, keepdim=True)
        reached = torch.matmul(by_group((weights != 0).to(rows.dtype), value.shape[1]), broken.to(rows.dtype)) > 0
        return of_weights.masked_fill(reached.view(*weights.shape[:-1], 1), torch.nan)

    def _add_scores(self, span: Span, of_scores: Tensor) -> None:
        """Adds what the gradient of the scores [B, H, c, m] gives to query, key and bias."""
        grouped = by_group(of_scores, self.inputs.key.shape[1])
        if self.query is not None:
            key = self.finite.key[:, :, span.low : span.high].to(grouped.dtype)
            of_query = torch.matmul(grouped, key).view(*of_scores.shape[:-1], key.shape[-1])
            self.query[:, :, span.start : span.stop] = of_query * self.inputs.scale
        if self.key is not None:
            _add_product(self.key, span, grouped, grouped_query(self.finite, span))
        if self.bias is None:
            return
        if isinstance(self.inputs.bias, DistanceBias):
            by_distance = self.inputs.bias.by_distance.detach().requires_grad_()
            with torch.enable_grad():
                part = bias_rows(replace(self.inputs.bias, by_distance=by_distance), *span)
            self.bias += torch.autograd.grad(part, by_distance, of_scores.sum_to_size(part.shape).to(part.dtype))[0]
        else:
            part = bias_rows(self.bias, *span)
            part += of_scores.sum_to_size(part.shape)


def _wide_zeros(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _finite(tensor: Tensor) -> Tensor:
    """The same tensor, with 0 for what is not finite."""
    finite = tensor.isfinite()
    return tensor if asking.answers(finite) and bool(finite.all()) else tensor.masked_fill(~finite, 0)


def _add_product(total: Tensor, span: Span, rows: Tensor, right: Tensor) -> None:
    """Adds rows^T right to the keys of a span: rows [B, G, r, m], right [B, G, r, D], total [B, G, n, D]."""
    part = total.flatten(0, 1)[:, span.low : span.high]
    part.baddbmm_(rows.flatten(0, 1).mT, right.flatten(0, 1))
