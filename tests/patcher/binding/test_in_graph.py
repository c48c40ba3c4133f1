"""A patched model is one graph, with and without padding and caches, and gives what it gives uncompiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hf_sparsify
import pytest
import torch
from hf_sparsify.errors import RecipeMismatchError
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE, ModulePatch, attention_forward
from hf_sparsify.patcher.binding.masks import build_mask
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import close, everything, far, one_layer
from tiny_models import attention_inputs, build, inputs, logits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

MEANS = TopK(k=3, compensation="sdc+vmc")
THETA = TopTheta(k=2, compensation="sdc+vmc")
METHODS: dict[str, tuple[AttentionMethod, ...]] = {
    "llama": (MEANS, THETA),
    "bert": (THETA, Clustered(clusters=3, k=2)),
}
OTHERS = ("t5", "mistral", "gemma2", "gpt_oss", "gpt2", "bart")
# Absolute positions count padding on the left as well in BERT and BART.
CASES = [
    *((name, method, "none") for name, methods in METHODS.items() for method in methods),
    ("llama", THETA, "left"),
    ("bert", THETA, "right"),
    *(pytest.param(name, MEANS, "right" if name == "bart" else "left", marks=pytest.mark.slow) for name in OTHERS),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def table(longest: int = 64, **fields: Any) -> ModuleThresholds:
    return ModuleThresholds(torch.tensor([1.0]), torch.full((4, 1), -2.0), 1, longest, **fields)


def sparse(name: str, method: AttentionMethod, **fields: Any) -> PreTrainedModel:
    """A tiny model with every attention module patched, with thresholds where the method has them."""
    model = one_layer(name)
    tables = {m.name: table(**fields) for m in attention_modules(model)} if method.needs_thresholds else {}
    apply_plan(model, everything(model, method), tables)
    return model


def in_one_graph(model: nn.Module, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    """The compiled model, which refuses to break, and the counter of its graphs."""
    counter = CompileCounterWithBackend("eager")
    return torch.compile(model, backend=counter, fullgraph=True, **options), counter


@pytest.mark.parametrize(("name", "method", "padding"), CASES)
def test_a_patched_model_is_one_graph_for_all_lengths(name: str, method: AttentionMethod, padding: str) -> None:
    model = sparse(name, method)
    compiled, counter = in_one_graph(model, dynamic=True)
    for length in (9, 12, 14):
        call = inputs(name, padding, length=length)
        close(logits(compiled, call), logits(model, call))
    assert counter.frame_count == 1


@torch.no_grad()
def decoded(prefill: Any, step: Any, cache: Cache, padding: str, room: int = 0) -> Tensor:
    """Logits of a prompt and of five steps; room: keys of a static cache, which a mask has to tell of."""
    call = inputs("llama", padding)
    ids, mask = call["input_ids"], call.get("attention_mask")
    found = [prefill(**call, past_key_values=cache).logits]
    for number in range(5):
        token = {"input_ids": ids[:, number : number + 1]}
        if mask is not None:
            mask = nn.functional.pad(mask, (0, 1), value=1)
            token["position_ids"] = mask.sum(-1, keepdim=True) - 1
            token["attention_mask"] = nn.functional.pad(mask, (0, max(0, room - mask.shape[1])))
        found.append(step(**token, past_key_values=cache).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("method", METHODS["llama"], ids=["top-k", "top-theta"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_decoding_with_a_static_cache_is_one_graph(padding: str, method: AttentionMethod) -> None:
    model = sparse("llama", method)
    compiled, counter = in_one_graph(model)
    caches = [StaticCache(config=model.config, max_cache_len=24) for _ in range(2)]
    found = decoded(model, compiled, caches[0], padding, room=24)
    assert counter.frame_count == 1
    close(found, decoded(model, model, caches[1], padding, room=24))


def test_decoding_with_a_growing_cache_makes_as_many_graphs_as_the_dense_model() -> None:
    graphs = []
    for model in (one_layer("llama"), sparse("llama", THETA)):
        torch._dynamo.reset()  # lengths that have changed once are remembered as dynamic
        compiled, counter = in_one_graph(model)
        found = decoded(compiled, compiled, DynamicCache(config=model.config), "left")
        close(found, decoded(model, model, DynamicCache(config=model.config), "left"))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


def test_modules_that_stay_dense_are_in_the_graph_too() -> None:
    for name in ("llama", "gemma2"):
        model = build(name)
        apply_plan(model, {attention_modules(model)[1].name: TopK(k=3)})
        compiled, _ = in_one_graph(model)
        for call in (inputs(name), inputs(name, "left")):
            close(logits(compiled, call), logits(model, call))


def test_padding_with_holes_is_seen_in_the_graph() -> None:
    model = sparse("llama", MEANS)
    compiled, _ = in_one_graph(model)
    call = inputs("llama", "left")
    without = logits(compiled, call)
    call["attention_mask"][0, 5] = 0
    found = logits(compiled, call)
    assert far(found, without)
    close(found, logits(model, call))


@pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")
@pytest.mark.parametrize("padding", ["none", "left"])
def test_graphs_reach_the_native_kernels(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = rows.attend
    monkeypatch.setattr(rows, "attend", lambda *given, **options: calls.append(1) or attend(*given, **options))
    model = sparse("llama", MEANS)
    compiled, _ = in_one_graph(model)
    decoded(compiled, compiled, StaticCache(config=model.config, max_cache_len=24), padding, room=24)
    assert len(calls) == 6


class Module(nn.Module):
    """As much of an attention module as the attention function looks at."""

    is_causal = True

    def __init__(self, patch: ModulePatch) -> None:
        super().__init__()
        setattr(self, PATCH_ATTRIBUTE, patch)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("kind", ["none", "ours", "boolean", "causal boolean", "float"])
def test_any_mask_means_the_same_in_a_graph(kind: str, heads: int) -> None:
    call = attention_inputs(dtype=torch.float32, bias=True, sinks=True)
    generator = torch.Generator().manual_seed(1)
    mask: Tensor | None = None
    if kind == "ours":
        mask = build_mask(2, 7, 7)
    elif kind == "causal boolean":
        mask = torch.ones(2, heads, 7, 7, dtype=torch.bool).tril()
    elif kind != "none":
        mask = torch.rand(2, heads, 7, 7, generator=generator) < 0.6
        mask[0, 0, 3] = False
    if kind == "float":
        added = torch.randn(2, heads, 7, 7, generator=generator)
        mask = added.masked_fill(~mask, -torch.inf)  # type: ignore[operator]
    module = Module(ModulePatch("layers.3.attn", "self", TopK(k=2)))
    given = (module, call.query, call.key, call.value, mask)
    options = {"scaling": 0.7, "softcap": 2.0, "position_bias": call.bias, "s_aux": call.sinks}
    compiled = torch.compile(attention_forward, backend="aot_eager", fullgraph=True)
    close(compiled(*given, **options)[0], attention_forward(*given, **options)[0])


def test_gradients_flow_outside_the_graph() -> None:
    call, module = attention_inputs(dtype=torch.float32), Module(ModulePatch("layers.3.attn", "self", TopK(k=2)))
    grads = []
    for forward in (attention_forward, torch.compile(attention_forward, backend="aot_eager")):
        given = [tensor.clone().requires_grad_() for tensor in (call.query, call.key, call.value)]
        forward(module, *given, None)[0].square().sum().backward()
        grads.append(torch.cat([tensor.grad.flatten() for tensor in given]))  # type: ignore[union-attr]
    assert grads[0].abs().max() > 0
    close(grads[1], grads[0])


@dataclass(frozen=True)
class Nothing(TopK):
    """A method of someone else's that gives zeros."""

    def attend(self, inputs: Any, **options: Any) -> Any:
        return inputs.value.new_zeros(*inputs.query.shape[:3], inputs.value.shape[3]), None


def test_a_method_that_no_recipe_knows_runs_outside_the_graph() -> None:
    call = attention_inputs(dtype=torch.float32)
    compiled = torch.compile(attention_forward, backend="aot_eager")
    for method, is_zero in ((Nothing(k=2), True), (TopK(k=2), False)):
        module = Module(ModulePatch("layers.3.attn", "self", method))
        out, _ = compiled(module, call.query, call.key, call.value, None)
        assert bool((out == 0).all()) == is_zero


def test_what_is_wrong_with_thresholds_is_said_from_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    call = inputs("llama")
    with caplog.at_level(logging.WARNING, logger="hf_sparsify"):
        compiled, _ = in_one_graph(sparse("llama", THETA, longest=6))
        logits(compiled, call)
        logits(compiled, call)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("hf_sparsify")]
    assert len(told) == 1
    assert "more than 6 keys" in told[0]
    compiled, _ = in_one_graph(sparse("llama", THETA, scale=0.5))
    with pytest.raises(RecipeMismatchError, match=r"scaled by 0\.5"):
        logits(compiled, call)


def test_a_patch_put_back_finds_its_graph() -> None:
    model, call = one_layer("bert"), inputs("bert", "right")
    compiled, counter = in_one_graph(model)
    for _ in range(3):
        logits(compiled, call)
        with hf_sparsify.patch(model, TopK(k=3)):
            logits(compiled, call)
    assert counter.frame_count == 2


def test_an_exported_model_is_sparse_without_its_patch() -> None:
    model, call = one_layer("bert"), inputs("bert", "right")
    dense = logits(model, call)
    with hf_sparsify.patch(model, TopK(k=3)):
        expected = logits(model, call)
        program = torch.export.export(model, (), call)
    found = logits(program.module(), call)  # type: ignore[arg-type]
    assert far(found, dense)
    close(found, expected)


def test_an_export_holds_for_other_lengths_with_padding() -> None:
    model = one_layer("bert")
    with hf_sparsify.patch(model, TopK(k=3)):
        length = torch.export.Dim("length", min=4, max=64)
        call = inputs("bert", "right")
        shapes = {name: {1: length} for name in call}
        program = torch.export.export(model, (), call, dynamic_shapes=shapes)
        other = inputs("bert", "right", length=19)
        close(logits(program.module(), other), logits(model, other))  # type: ignore[arg-type]
