"""What is intercepted in a module's forward, what it becomes, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.attention import ModulePatch
from hf_sparsify.patcher.binding.interception import intercept
from hf_sparsify.patcher.binding.modules import ACCURACY_ONLY
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionInputs, AttentionMethod, Clustered, FullMask, RowRanges, TopK
from tiny_models import brute_force, highest
from torch import Tensor, nn
from torch.nn import functional as F  # as torch's own code calls it
from torch.overrides import _get_current_function_mode

HEADS, WIDTH = 4, 3
LOWEST = torch.finfo(torch.float32).min
Calculation = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class OwnAttention(nn.Module):
    """An attention module as old code and remote code write it: query, key, value [B, H, n, D] and a mask to add."""

    def __init__(self, calculate: Calculation, heads: int | None = HEADS) -> None:
        super().__init__()
        self.calculate = calculate
        if heads is not None:
            self.num_heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.calculate(query, key, value, mask)


def weighing(softmax: Callable[[Tensor], Tensor]) -> Calculation:
    """Attention that calls a softmax."""

    def calculate(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
        return softmax(scores if mask is None else scores + mask).to(value.dtype) @ value

    return calculate


def folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention whose batch and heads are one dimension."""
    out = weighing(lambda scores: scores.softmax(-1))(*(x.flatten(0, 1) for x in (query, key, value)), mask)
    return out.unflatten(0, query.shape[:2])


def in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with one more leading dimension."""
    out = weighing(lambda scores: scores.softmax(-1))(*(x.unsqueeze(1) for x in (query, key, value)), mask)
    return out.squeeze(1)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask)


def sdpa_by_name(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(
        query=query, key=key, value=value, attn_mask=mask, dropout_p=0.0, is_causal=False, scale=WIDTH**-0.5
    )


WAYS: dict[str, Calculation] = {
    "torch.softmax": weighing(lambda scores: torch.softmax(scores, -1)),
    "torch.softmax, by name": weighing(lambda scores: torch.softmax(input=scores, dim=3)),
    "torch.special.softmax": weighing(lambda scores: torch.special.softmax(scores, -1)),
    "Tensor.softmax": weighing(lambda scores: scores.softmax(dim=-1, dtype=torch.float64)),
    "F.softmax": weighing(lambda scores: F.softmax(scores, dim=-1, dtype=torch.float32)),
    "nn.Softmax": weighing(nn.Softmax(-1)),
    "folded heads": folded,
    "blocks": in_blocks,
    "sdpa": sdpa,
    "sdpa, by name": sdpa_by_name,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value [2, H, n, D]."""
    return tuple(random(2, HEADS, keys, WIDTH, seed=seed) for seed in range(3))  # type: ignore[return-value]


def causal_mask(keys: int, lowest: float = LOWEST) -> Tensor:
    """To be added: [n, n]."""
    return torch.full((keys, keys), lowest).triu(1)


def patched(calculate: Calculation, method: AttentionMethod, heads: int | None = HEADS) -> tuple[Any, ModulePatch]:
    module, patch = OwnAttention(calculate, heads), ModulePatch("h.0.attn", "self", method, intercepted=True)
    intercept(module, patch)
    return module, patch


def expected(method: TopK, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """The definition in Python floats."""
    keys = key.shape[2]
    ranges = RowRanges.causal(keys, keys) if causal else RowRanges.all_keys(keys, keys)
    call = AttentionInputs(query, key, value, ranges, scale=WIDTH**-0.5)
    return brute_force(call, highest(method.k or 0))[0].float()


# What comes out


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


# What is refused


def refused(
    calculate: Calculation, message: str, method: AttentionMethod | None = None, heads: int | None = HEADS
) -> None:
    module, _ = patched(calculate, method or TopK(k=3), heads)
    with pytest.raises(NotPatchableError, match=rf"h\.0\.attn \(OwnAttention\) cannot be patched: {message}") as caught:
        module(*problem())
    assert "--set 're:h\\.\\d+\\.attn=none' leaves it dense" in str(caught.value)
    assert _get_current_function_mode() is None


def test_attention_that_nothing_was_seen_of_is_refused() -> None:
    nothing = "its attention could not be intercepted: it calls neither softmax over the last dimension nor "
    refused(lambda query, key, value, mask: value, nothing)
    beside = f"{nothing}scaled_dot_product_attention, but softmax over dimension 1"
    refused(lambda query, key, value, mask: query.softmax(1), beside)
    refused(lambda query, key, value, mask: torch.softmax(query, -1, out=torch.empty_like(query)), nothing)


def test_two_softmaxes_are_refused() -> None:
    twice = weighing(lambda scores: scores.softmax(-1).softmax(-1))
    refused(twice, "it calls softmax and then softmax, and which is its attention is not clear")
    mixed = "it calls scaled_dot_product_attention and then softmax"
    refused(lambda q, k, v, mask: F.softmax(sdpa(q, k, v, mask), -1), mixed)


def test_heads_that_are_not_found_are_refused() -> None:
    refused(WAYS["F.softmax"], r"which dimension of its scores \(2 x 4 x 9 x 9\) counts its 3 heads is not", heads=3)
    refused(folded, r"which dimension of its scores \(8 x 9 x 9\) counts its heads is not", heads=None)
    patched(WAYS["F.softmax"], TopK(k=3), heads=None)[0](*problem())


def test_shapes_of_sdpa_that_are_not_known_are_refused() -> None:
    without_batch = r"its queries, keys and values \(4 x 9 x 3, 4 x 9 x 3, 4 x 9 x 3\) are not batch x heads"
    refused(lambda q, k, v, mask: sdpa(q[0], k[0], v[0], mask), without_batch)
    refused(
        lambda q, k, v, mask: F.scaled_dot_product_attention(q[:, :, :2], k, v, is_causal=True),
        "its attention is causal, but 2 queries meet 9 keys",
    )


def test_clustering_needs_queries_and_keys() -> None:
    clustered = Clustered(clusters=3, k=2)
    refused(WAYS["F.softmax"], "clustered attention needs queries and keys", clustered)
    query, key, value = problem()
    inputs = AttentionInputs(query, key, value, RowRanges.all_keys(9, 9), scale=WIDTH**-0.5)
    out = patched(sdpa, clustered)[0](query, key, value)
    torch.testing.assert_close(out, clustered.attend(inputs)[0])


# No trace is left


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_ends_early_leaves_no_mode(error: type[BaseException]) -> None:
    def failing(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        raise error

    module, patch = patched(failing, TopK(k=3))
    with pytest.raises(error):
        module(*problem())
    module.calculate = sdpa
    out = module(*problem())
    torch.testing.assert_close(out, expected(TopK(k=3), *problem(), causal=False), rtol=1e-4, atol=1e-5)
    assert _get_current_function_mode() is None
    assert patch.calls == 1


def test_only_the_module_itself_is_intercepted() -> None:
    module, _ = patched(sdpa, TopK(k=3))
    query, key, value = problem()
    other = OwnAttention(sdpa)
    dense = other(query, key, value)
    module(query, key, value)
    assert torch.equal(other(query, key, value), dense)


class SdpaAttention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def test_hooks_of_a_person_see_the_sparse_output_and_stay() -> None:
    model = nn.Sequential(SdpaAttention())
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(F.softmax(output, -1)))
    apply_plan(model, {"0": TopK(k=3)})
    out = model[0](*problem())
    torch.testing.assert_close(seen[0], F.softmax(out, -1))
    torch.testing.assert_close(out, expected(TopK(k=3), *problem(), causal=False), rtol=1e-4, atol=1e-5)
    remove_patch(model)
    assert (len(model[0]._forward_hooks), len(model[0]._forward_pre_hooks)) == (1, 0)


def test_unpatching_ends_an_interrupted_call() -> None:
    model = nn.Sequential(SdpaAttention())
    apply_plan(model, {"0": TopK(k=3)})
    with pytest.raises(KeyboardInterrupt):
        model[0](*problem()[:2], Interrupting())
    assert _get_current_function_mode() is not None
    remove_patch(model)
    assert _get_current_function_mode() is None


class Interrupting(torch.Tensor):
    """Stands for a person who presses Ctrl-C while the attention is computed."""

    @property
    def ndim(self) -> int:
        raise KeyboardInterrupt


def test_the_rounded_denominator_is_refused_where_only_scores_are_seen() -> None:
    message = "the rounded denominator needs keys, and it hands over its scores: choose exact"
    refused(WAYS["F.softmax"], message, TopK(k=3, compensation="sdc+vmc", denominator="rounded"))
