"""What is intercepted in a module's forward, and what it becomes."""

from __future__ import annotations

import math

import pytest
import torch
from hf_sparsify.patcher.binding.modules import ACCURACY_ONLY
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, TopK
from own_attention import (
    HEADS,
    LOWEST,
    WAYS,
    WIDTH,
    OwnAttention,
    causal_mask,
    expected,
    patched,
    problem,
    weighing,
)
from tiny_models import brute_force, highest
from torch import Tensor, nn
from torch.nn import functional as F  # as torch's own code calls it


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_attention_is_the_definition(way: str, causal: bool) -> None:
    method, (query, key, value) = TopK(k=3), problem()
    module, patch = patched(WAYS[way], method)
    out = module(query, key, value, causal_mask(9) if causal else None)
    torch.testing.assert_close(out, expected(method, query, key, value, causal=causal), rtol=1e-4, atol=1e-5)
    assert (patch.calls, dict(patch.paths)) == (1, {ACCURACY_ONLY: 1})


@pytest.mark.parametrize("way", WAYS)
def test_compensation_is_that_of_the_method_on_queries_and_keys(way: str) -> None:
    query, key, value = problem()
    for compensation in ("sdc", "sdc+vmc"):
        method = TopK(k=3, compensation=compensation)
        inputs = AttentionInputs(query, key, value, RowRanges.causal(9, 9), scale=WIDTH**-0.5)
        out = patched(WAYS[way], method)[0](query, key, value, causal_mask(9))
        torch.testing.assert_close(out, method.attend(inputs)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_as", [-math.inf, LOWEST, LOWEST / 16, -1e10, -1e9])
def test_hidden_scores_are_not_keys_of_a_row(mask_as: float) -> None:
    query, key, value = problem()
    module, patch = patched(WAYS["torch.softmax"], TopK(k=3))
    patch.meter = Meter()
    module(query, key, value, causal_mask(9, mask_as))
    counted = patch.meter.modules["h.0.attn"]
    assert (counted.visible, counted.kept) == (2 * HEADS * 45, 2 * HEADS * (1 + 2 + 7 * 3))
    assert counted.v_rows == 0


def test_very_low_scores_are_keys_of_a_row() -> None:
    query, key, value = problem()
    module, patch = patched(WAYS["torch.softmax"], TopK(k=9, protect_first=1))
    patch.meter = Meter()
    module(query, key, value, -20000.0 * torch.arange(9.0))
    assert patch.meter.modules["h.0.attn"].visible == 2 * HEADS * 81


@pytest.mark.parametrize("divisor", [1, 16])
def test_a_float16_mask_on_float32_scores(divisor: int) -> None:
    query, key, value = problem()
    half = torch.finfo(torch.float16).min / divisor
    module, patch = patched(WAYS["torch.softmax"], TopK(k=3))
    module.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    patch.meter = Meter()
    module(query, key, value, causal_mask(9, half))
    assert patch.meter.modules["h.0.attn"].visible == 2 * HEADS * 45


def test_rows_that_see_nothing_and_padding() -> None:
    query, key, value = problem()
    visible = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    visible[1, :, :, :4] = False
    mask = torch.zeros(2, 1, 9, 9).masked_fill(~visible, LOWEST)
    module, patch = patched(WAYS["torch.softmax"], TopK(k=3, compensation="sdc+vmc"))
    patch.meter = Meter()
    out = module(query, key, value, mask)
    assert torch.equal(out[1, :, :4], torch.zeros(HEADS, 4, WIDTH))
    inputs = AttentionInputs(query, key, value, FullMask(visible), scale=WIDTH**-0.5)
    torch.testing.assert_close(out, patch.method.attend(inputs)[0], rtol=1e-4, atol=1e-5)
    assert patch.meter.modules["h.0.attn"].rows == HEADS * (9 + 5)


@pytest.mark.parametrize(
    ("scores", "asked", "found"), [("float16", None, "float16"), ("bfloat16", "float32", "float32")]
)
def test_the_weights_have_the_dtype_of_the_softmax(scores: str, asked: str | None, found: str) -> None:
    seen = []

    def calculate(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dtype = None if asked is None else getattr(torch, asked)
        seen.append(torch.softmax((query @ key.transpose(-1, -2)).to(getattr(torch, scores)), -1, dtype))
        return seen[0]

    patched(calculate, TopK(k=3))[0](*problem())
    assert seen[0].dtype == getattr(torch, found)
    assert ((seen[0] > 0).sum(-1) == 3).all()


@pytest.mark.parametrize("way", ["F.softmax", "sdpa"])
def test_gradients_flow_through_what_was_kept(way: str) -> None:
    query, key, value = (x.double().requires_grad_() for x in problem(5))
    module, _ = patched(WAYS[way] if way == "sdpa" else weighing(lambda s: F.softmax(s, -1)), TopK(k=2))
    torch.autograd.gradcheck(lambda *x: module(*x, causal_mask(5).double()), (query, key, value), atol=1e-4)
    module(query, key, value).sum().backward()
    assert query.grad is not None
    assert float(query.grad.abs().max()) > 0


def test_grouped_queries_and_one_head_of_keys() -> None:
    query, key, value = problem()
    method = TopK(k=3)
    for groups in (1, 2):
        few = key[:, :groups], value[:, :groups]
        call = AttentionInputs(query, *few, RowRanges.causal(9, 9), scale=WIDTH**-0.5)

        def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

        out = patched(grouped, method)[0](query, *few)
        torch.testing.assert_close(out, brute_force(call, highest(3))[0].float(), rtol=1e-4, atol=1e-5)


def test_short_rows_stay_dense() -> None:
    query, key, value = problem()
    method = TopK(k=3, min_length=6)
    out = patched(WAYS["F.softmax"], method)[0](query, key, value, causal_mask(9))
    dense = OwnAttention(WAYS["F.softmax"])(query, key, value, causal_mask(9))
    torch.testing.assert_close(out[:, :, :5], dense[:, :, :5])
    sparse = expected(method, query, key, value, causal=True)
    torch.testing.assert_close(out[:, :, 5:], sparse[:, :, 5:], rtol=1e-4, atol=1e-5)


def test_other_softmaxes_and_functions_are_left_alone() -> None:
    """ConvBERT's module, for one, has a softmax over the kernel of its convolution beside that of its attention."""

    def calculate(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        kernel = query.softmax(1)
        return weighing(lambda scores: scores.softmax(-1))(kernel, key, value, mask)

    method, (query, key, value) = TopK(k=3), problem()
    out = patched(calculate, method)[0](query, key, value)
    whole = expected(method, query.softmax(1), key, value, causal=False)
    torch.testing.assert_close(out, whole, rtol=1e-4, atol=1e-5)
