"""A whole feed-forward layer with top-k selection, for training: memory linear in tokens, whatever d_ff.

After Gupta, Dar, Goodman, Ciprut, Berant: Memory-efficient Transformers via Top-k Attention, 2021 (arXiv 2106.06899),
section on feed-forward layers. Tokens go through in chunks. Of a chunk's [c, d_ff] activations only what was kept
stays for the backward pass: positions, in the smallest integer type, and the k inputs of the activation function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .kept_keys import smallest_integer
from .top_k_feed_forward import largest

CHUNK_ELEMENTS = 1024 * 1024  # inner activations of one chunk (4 MB in float32)
SMALLEST_CHUNK = 64  # tokens, so that products stay products of matrices

Projection = tuple[Tensor, Tensor | None]  # a weight [outputs, inputs] and its bias [outputs]


@dataclass(frozen=True)
class Inner:
    """What stands between the projections: dropout(activation(a)), in a gated layer dropout(activation(a) * b).

    activation: works on each element. dropout: the share of activations that are set to zero.
    """

    activation: Callable[[Tensor], Tensor]
    dropout: float = 0.0

    def __call__(self, before: list[Tensor]) -> Tensor:
        """The activations, before dropout, from what the one or two up-projections gave, all of one shape."""
        activated = self.activation(before[0])
        return activated if len(before) == 1 else activated * before[1]

    def zeros_have_gradients(self, gated: bool) -> bool:
        """Whether it matters which of several activations that are zero are kept."""
        return gated or not isinstance(self.activation, torch.nn.ReLU)

    @property
    def scale(self) -> float:
        """Of activations that dropout lets pass."""
        return 1 / (1 - self.dropout) if self.dropout < 1 else 0.0


def feed_forward_kept(
    hidden: Tensor, up: list[Projection], inner: Inner, down: Projection, k: int, *, chunk_size: int | None = None
) -> Tensor:
    """down(the k of inner(up(hidden)) of largest magnitude) for each token: [..., d_model] -> [..., d_model].

    up: one projection d_model -> d_ff, or two of a gated layer. Gradients are those of the kept activations, whose
    choice is a constant; there are no second derivatives. chunk_size: tokens at a time. All tensors have one dtype;
    gradients of weights are summed in float32 at least.
    """
    d_ff = down[0].shape[1]
    if chunk_size is None:
        chunk_size = max(SMALLEST_CHUNK, CHUNK_ELEMENTS // max(1, d_ff))
    tokens = hidden.reshape(-1, hidden.shape[-1])
    parameters = [tensor for projection in (down, *up) for tensor in projection]
    out: Tensor = _Kept.apply(inner, min(k, d_ff), chunk_size, tokens, *parameters)
    return out.view(*hidden.shape[:-1], out.shape[-1])


class _Kept(torch.autograd.Function):
    """apply(inner, k, chunk_size, hidden [T, d_model], down, its bias, first up, its bias, second up, its bias)."""

    @staticmethod
    def forward(ctx: Any, inner: Inner, k: int, chunk_size: int, hidden: Tensor, *parameters: Tensor) -> Tensor:
        (down, down_bias), *ups = _pairs(parameters)
        tokens, d_ff = len(hidden), down.shape[1]
        out = hidden.new_empty(tokens, down.shape[0])
        positions = torch.empty(tokens, k, dtype=smallest_integer(d_ff - 1), device=hidden.device)
        before = [hidden.new_empty(tokens, k) for _ in ups]
        passed = torch.empty_like(positions, dtype=torch.bool) if inner.dropout else None
        zeros = inner.zeros_have_gradients(len(ups) > 1)
        for rows in _chunks(tokens, chunk_size):
            projected = [linear(hidden[rows], *up) for up in ups]
            activations = inner(projected)
            if passed is not None:
                activations, mask = torch.native_dropout(activations, inner.dropout, True)
            kept = largest(activations, k, zeros=zeros)
            positions[rows] = kept
            for own, values in zip(before, projected, strict=True):
                own[rows] = values.gather(1, kept)
            if passed is not None:
                passed[rows] = mask.gather(1, kept)
            values = activations.gather(1, kept)
            out[rows] = linear(activations.zero_().scatter_(1, kept, values), down, down_bias)
        ctx.inner, ctx.chunk_size = inner, chunk_size
        ctx.shapes = [None if one is None else one.shape for one in parameters]
        ctx.save_for_backward(hidden, positions, passed, down, *before, *(weight for weight, _ in ups))
        return out

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "second derivatives through sparse feed-forward layers are not supported: compute this part with the "
                "model unpatched, or without create_graph"
            )
        with torch.autocast(out_grad.device.type, enabled=False):
            return (None, None, None, *_gradients(ctx, out_grad))


def _gradients(ctx: Any, out_grad: Tensor) -> list[Tensor | None]:
    """What backward returns for hidden and the parameters."""
    inner: Inner = ctx.inner
    hidden, positions, passed, down, *rest = ctx.saved_tensors
    before, ups = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    wanted = ctx.needs_input_grad[3:]
    hidden_grad = torch.empty_like(hidden) if wanted[0] else None  # of one chunk after another: nothing to add up
    sums = [_zeros(shape, hidden) if want else None for shape, want in zip(ctx.shapes, wanted[1:], strict=True)]
    down_sum, down_bias_sum, *up_sums = sums
    for rows in _chunks(len(hidden), ctx.chunk_size):
        kept, grad = positions[rows].long(), out_grad[rows]
        factor = None if passed is None else passed[rows].to(hidden.dtype) * inner.scale
        buffer = grad @ down  # for one [c, d_ff] after another
        values, before_grads = _through_inner(inner, [one[rows] for one in before], factor, buffer.gather(1, kept))
        if down_sum is not None:
            _accumulate(down_sum, grad.t(), buffer.zero_().scatter_(1, kept, values))
        if down_bias_sum is not None:
            down_bias_sum += grad.sum(0, dtype=down_bias_sum.dtype)
        hidden_sum = _zeros(hidden[rows].shape, hidden) if hidden_grad is not None else None
        for number, (weight, before_grad) in enumerate(zip(ups, before_grads, strict=True)):
            weight_sum, bias_sum = up_sums[2 * number : 2 * number + 2]
            buffer.zero_().scatter_(1, kept, before_grad)
            if hidden_sum is not None:
                _accumulate(hidden_sum, buffer, weight)
            if weight_sum is not None:
                _accumulate(weight_sum, buffer.t(), hidden[rows])
            if bias_sum is not None:
                bias_sum += buffer.sum(0, dtype=bias_sum.dtype)
        if hidden_grad is not None and hidden_sum is not None:
            hidden_grad[rows] = hidden_sum
    return [hidden_grad, *(None if total is None else total.to(hidden.dtype) for total in sums)]


def _through_inner(
    inner: Inner, before: list[Tensor], factor: Tensor | None, grad: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The kept activations [c, k], times `factor`, and the gradients of what the up-projections gave for them."""
    leaves = [one.detach().requires_grad_() for one in before]
    with torch.enable_grad():
        values = inner(leaves)
        if factor is not None:
            values = values * factor
        return values.detach(), torch.autograd.grad(values, leaves, grad)


def _zeros(shape: torch.Size, hidden: Tensor) -> Tensor:
    """To add up a gradient in."""
    return torch.zeros(shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _pairs(parameters: tuple[Tensor, ...]) -> list[Projection]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _chunks(tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, tokens, size):
        yield slice(start, start + size)
