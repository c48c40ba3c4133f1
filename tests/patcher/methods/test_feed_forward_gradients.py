"""Gradients of a whole feed-forward layer with top-k selection: those of its definition, in memory linear in tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import TopKFeedForward
from hf_sparsify.patcher.methods.feed_forward_gradients import Inner, feed_forward_kept
from live_storage import LiveStorage
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

TOKENS, D_MODEL, D_FF, K = 13, 6, 20, 5
MIB = 2**20


def parameters(
    gated: bool = False, bias: bool = True, d_ff: int = D_FF, dtype: torch.dtype = torch.float64
) -> list[Any]:
    """hidden, down, its bias, first up, its bias, and second up, its bias if gated; None for no bias."""
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(TOKENS, D_MODEL), (D_MODEL, d_ff), (D_MODEL,), (d_ff, D_MODEL), (d_ff,)]
    shapes += [(d_ff, D_MODEL), (d_ff,)] if gated else []
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        if bias or len(shape) == 2
        else None
        for shape in shapes
    ]


def kept(inner: Inner, tensors: list[Any], k: int = K, chunk_size: int | None = 4) -> Tensor:
    hidden, down, down_bias, *up = tensors
    pairs = list(zip(up[::2], up[1::2], strict=True))
    return feed_forward_kept(hidden, pairs, inner, (down, down_bias), k, chunk_size=chunk_size)


def defined(inner: Inner, tensors: list[Any], k: int = K) -> Tensor:
    """The same by autograd through the definition, all tokens at once."""
    hidden, down, down_bias, *up = tensors
    before = [linear(hidden, weight, bias) for weight, bias in zip(up[::2], up[1::2], strict=True)]
    activations = inner(before)
    if inner.dropout:
        activations = torch.native_dropout(activations, inner.dropout, True)[0]
    return linear(TopKFeedForward(k=k).mask(activations), down, down_bias)


def gradients(out: Tensor, tensors: list[Any]) -> list[Tensor]:
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return list(torch.autograd.grad(out, wanted, upstream, retain_graph=True))


def same(actual: Tensor, expected: Tensor, tensors: list[Any], tolerance: float = 1e-10) -> None:
    assert (actual - expected).abs().max() < tolerance
    for one, other in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        assert (one - other).abs().max() < tolerance


ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "tanh gelu": nn.GELU(approximate="tanh")}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equal_to_autograd_through_the_definition(activation: str, gated: bool, bias: bool) -> None:
    tensors, inner = parameters(gated, bias), Inner(ACTIVATIONS[activation])
    for k in (1, K, D_FF, D_FF + 1):
        same(kept(inner, tensors, k), defined(inner, tensors, k), tensors)


@pytest.mark.parametrize("chunk_size", [1, 5, TOKENS, 10 * TOKENS, None])
def test_chunks_change_nothing(chunk_size: int | None) -> None:
    tensors, inner = parameters(gated=True), Inner(nn.SiLU())
    same(kept(inner, tensors, chunk_size=chunk_size), defined(inner, tensors), tensors)


@pytest.mark.parametrize("inner", [Inner(nn.ReLU()), Inner(nn.GELU(), dropout=0.3)])
@pytest.mark.parametrize("gated", [False, True])
def test_gradcheck(inner: Inner, gated: bool) -> None:
    tensors = parameters(gated)

    def call(*values: Tensor) -> Tensor:
        torch.manual_seed(0)
        return kept(inner, list(values))

    assert torch.autograd.gradcheck(call, tensors)


def test_relu_where_fewer_than_k_are_positive_is_the_dense_layer() -> None:
    tensors, inner = parameters(), Inner(nn.ReLU())
    with torch.no_grad():
        tensors[4].sub_(2.0)
    hidden, down, down_bias, up, up_bias = tensors
    inner_width = int((linear(hidden, up, up_bias) > 0).sum(-1).max())
    assert 0 < inner_width < D_FF
    same(kept(inner, tensors, inner_width), linear(linear(hidden, up, up_bias).relu(), down, down_bias), tensors)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_among_equals_the_first_are_kept_also_among_zeros(activation: str, gated: bool) -> None:
    tensors, inner = parameters(gated), Inner(ACTIVATIONS[activation])
    with torch.no_grad():
        for tensor in tensors[3:]:  # every unit a copy of its neighbour; the first tokens give zeros everywhere
            tensor[1::2] = tensor[::2]
        tensors[4].zero_()
        tensors[0][:3] = 0
    for k in (3, 4):
        same(kept(inner, tensors, k), defined(inner, tensors, k), tensors)


@pytest.mark.parametrize("chunk_size", [5, TOKENS])
def test_dropout_gives_gradients_of_the_masks_it_drew(chunk_size: int) -> None:
    tensors = parameters(gated=True)
    inner = Inner(nn.SiLU(), dropout=0.5)
    torch.manual_seed(0)
    actual = kept(inner, tensors, chunk_size=chunk_size)
    torch.manual_seed(0)
    rows = [[tensors[0][start : start + chunk_size], *tensors[1:]] for start in range(0, TOKENS, chunk_size)]
    same(actual, torch.cat([defined(inner, part) for part in rows]), tensors)
    before = torch.get_rng_state()
    gradients(actual, tensors)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_everything_leaves_the_bias() -> None:
    tensors = parameters()
    out = kept(Inner(nn.GELU(), dropout=1.0), tensors)
    assert torch.equal(out, tensors[2].expand_as(out))
    assert all(bool(grad.isfinite().all()) for grad in gradients(out, tensors))


@pytest.mark.parametrize("only", range(7))
def test_gradients_of_one_tensor_alone(only: int) -> None:
    tensors, inner = parameters(gated=True), Inner(nn.GELU())
    for place, tensor in enumerate(tensors):
        tensor.requires_grad_(place == only)
    same(kept(inner, tensors), defined(inner, tensors), tensors)


def test_two_backward_passes_and_none_of_second_order() -> None:
    tensors, inner = parameters(), Inner(nn.GELU())
    out = kept(inner, tensors)
    first, second = gradients(out, tensors), gradients(out, tensors)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second derivatives through sparse feed-forward layers"):
        torch.autograd.grad(out.sum(), tensors[0], create_graph=True)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_under_checkpointing(dropout: float) -> None:
    tensors, inner = parameters(), Inner(nn.GELU(), dropout)

    def run(call: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(0)
        out = call()
        wanted = [tensor for tensor in tensors if tensor is not None]
        return list(torch.autograd.grad(out.square().sum(), wanted))

    expected = run(lambda: kept(inner, tensors))
    actual = run(lambda: checkpoint(kept, inner, tensors, use_reentrant=False))
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_bfloat16_is_as_near_as_the_definition_in_bfloat16() -> None:
    exact, rounded, inner = parameters(), parameters(dtype=torch.bfloat16), Inner(nn.GELU())
    with torch.no_grad():
        for one, other in zip(exact, rounded, strict=True):
            one.copy_(other)
    expected = gradients(defined(inner, exact, D_FF), exact)
    actual = gradients(kept(inner, rounded, D_FF), rounded)
    reference = gradients(defined(inner, rounded, D_FF), rounded)
    for ours, theirs, right in zip(actual, reference, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max()


def test_no_tokens_and_more_than_two_dimensions() -> None:
    tensors, inner = parameters(), Inner(nn.GELU())
    nothing = [tensors[0][:0], *tensors[1:]]
    assert kept(inner, nothing).shape == (0, D_MODEL)
    assert all(not grad.any() for grad in gradients(kept(inner, nothing), tensors[1:]))
    several = [tensors[0][:12].view(2, 3, 2, D_MODEL), *tensors[1:]]
    assert torch.equal(kept(inner, several).view(12, D_MODEL), kept(inner, [tensors[0][:12], *tensors[1:]]))


def stored(d_ff: int, k: int, gated: bool = False, dropout: float = 0.0) -> int:
    """Bytes per token that stay for the backward pass, beside the layer's input and weights."""
    tensors, sizes = parameters(gated, d_ff=d_ff, dtype=torch.float32), []
    known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept(Inner(nn.GELU(), dropout), tensors, k)
    return sum(sizes) // TOKENS


def test_what_stays_for_the_backward_pass() -> None:
    assert stored(200, 8) == 8 * (4 + 1)
    assert stored(200, 8, dropout=0.1) == 8 * (4 + 1 + 1)
    assert stored(256, 8) == 8 * (4 + 1)
    assert stored(257, 8) == stored(3000, 8) == 8 * (4 + 2)
    assert stored(300, 8, gated=True) == 8 * (2 * 4 + 2)
    with torch.no_grad():
        assert stored(300, 8) == 0


def backward_peak(tokens: int) -> int:
    """Bytes that are alive at most in a backward pass in bfloat16, beside what the forward pass left."""
    weights = [torch.full(shape, 0.1, dtype=torch.bfloat16) for shape in ((8, 16), (16, 8))]
    hidden = torch.ones(tokens, 16, dtype=torch.bfloat16, requires_grad=True)
    out = feed_forward_kept(hidden, [(weights[0], None)], Inner(nn.GELU()), (weights[1], None), 2, chunk_size=64)
    upstream = torch.ones_like(out)
    with LiveStorage() as storage:
        torch.autograd.grad(out, hidden, upstream)
    return storage.peak


def test_a_backward_pass_below_float32_adds_the_gradient_alone_for_each_token() -> None:
    assert backward_peak(4096) - backward_peak(2048) == 2048 * 16 * 2


def peak(d_ff: int, tokens: int = 16384) -> float:
    """MiB that are alive at most in a forward and a backward pass, beside input and weights."""
    hidden = torch.zeros(tokens, 64).normal_(generator=torch.Generator().manual_seed(0)).requires_grad_()
    up, down = (torch.full(shape, 0.1, requires_grad=True) for shape in ((d_ff, 64), (64, d_ff)))
    with LiveStorage() as storage:
        out = feed_forward_kept(hidden, [(up, None)], Inner(nn.ReLU()), (down, None), 64)
        torch.autograd.grad(out.sum(), (hidden, up, down))
    return storage.peak / MIB


@pytest.mark.slow
def test_memory_grows_with_tokens_and_hardly_with_d_ff() -> None:
    wide = peak(4096)
    assert wide < min(60, 1.6 * peak(1024))
    assert peak(4096, tokens=8192) > 0.4 * wide
