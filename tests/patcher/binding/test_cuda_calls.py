"""Patched models on a GPU that is not there: no attention call waits for it, or has to do with the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, fake_cuda, like, no_copies, to_cuda
from families.cells import LENGTH, plan_for, tables_for
from families.every import EVERY
from families.family import Inputs
from hf_sparsify.patcher import kernels
from hf_sparsify.patcher.binding import attention, masks
from hf_sparsify.patcher.binding.feed_forward import FeedForwardPatch
from hf_sparsify.patcher.binding.patching import apply_plan, current_patch
from hf_sparsify.patcher.methods import Method, TopK, TopKFeedForward, TopTheta, asking
from tiny_models import FAMILIES
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, StaticCache

METHODS: dict[str, Method] = {
    "top-k": TopK(k=3, compensation="sdc+vmc", protect_first=1, min_length=4),
    "top-theta": TopTheta(keep=0.4, compensation="sdc"),
    "feed-forward": TopKFeedForward(k=8),
}
MOST_KEYS = 16


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Attention and feed-forward calls run in torch and have to do with CUDA alone. Gives how often masks looked."""
    found: list[int] = []

    def look(*conditions: Tensor) -> list[bool]:
        found.append(len(conditions))
        return [False, True]  # padding without holes

    def on_cuda_alone(function: Any) -> Any:
        def called(*arguments: Any, **keywords: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*arguments, **keywords)
            with no_copies():
                return function(*arguments, **keywords)

        return called

    with monkeypatch.context() as patching:
        patching.setattr(masks, "look", look)
        patching.setattr(kernels, "obstacle", lambda: "no kernel runs on fake tensors")
        patching.setattr(attention, "attention_forward", on_cuda_alone(attention.attention_forward))
        patching.setattr(FeedForwardPatch, "_call", on_cuda_alone(FeedForwardPatch._call))
        yield found
    attention.register()


def on_cuda(name: str, method: Method, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A patched model with fake weights."""
    with unset_fake_temporarily():
        model = EVERY[name].make().eval().to(dtype)
        plan = plan_for(model, method)
        tables = tables_for(plan)
    model.config._experts_implementation = "batched_mm"  # the others look at the router's choice
    to_cuda(model)
    apply_plan(model, plan, tables)
    return model


def inputs(name: str, padding: str) -> Inputs:
    with unset_fake_temporarily():
        real = EVERY[name].inputs(padding, LENGTH)
    return {key: like(tensor) for key, tensor in real.items()}


@torch.no_grad()
def run(model: PreTrainedModel, call: dict[str, Any]) -> Any:
    dtype = model.dtype
    return model(**{k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()})


def step(model: PreTrainedModel, call: Inputs) -> None:
    """A prompt, and a token after it."""
    found = run(model, {**call, "use_cache": True})
    more = {key: value for key, value in call.items() if key != "position_ids"}
    if "decoder_input_ids" in call:
        more["decoder_input_ids"] = call["decoder_input_ids"][:, :1]
    else:
        more["input_ids"] = call["input_ids"][:, :1]
        if "attention_mask" in call:
            more["attention_mask"] = torch.cat([call["attention_mask"], call["attention_mask"][:, :1]], 1)
    run(model, {**more, "past_key_values": found.past_key_values, "use_cache": True})


PART = [(name, method) for name in FAMILIES for method in METHODS]
REST = [(name, method) for name in EVERY if name not in FAMILIES for method in METHODS]


@pytest.mark.parametrize(("name", "method"), [*PART, *(pytest.param(*cell, marks=pytest.mark.matrix) for cell in REST)])
def test_no_call_waits_for_the_gpu(name: str, method: str) -> None:
    family = EVERY[name]
    if method == "feed-forward" and not family.feed_forward:
        pytest.skip("a mixture of experts")
    with fake_cuda():
        model = on_cuda(name, METHODS[method])
        for padding in {family.paddings[0], family.paddings[-1]}:
            call = inputs(name, padding)
            if family.modes:
                step(model, call)
            else:
                run(model, call)
        assert all(patch.calls for patch in current_patch(model).module_patches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_nor_does_one_in_half_precision(name: str, dtype: torch.dtype) -> None:
    with fake_cuda():
        model = on_cuda(name, METHODS["top-theta"], dtype)
        step(model, inputs(name, "left"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_step_with_a_static_cache_does_not_look_at_its_mask(name: str, method: str, looks: list[int]) -> None:
    with fake_cuda():
        model = on_cuda(name, METHODS[method])
        cache = StaticCache(config=model.config, max_cache_len=MOST_KEYS)
        run(model, {**inputs(name, "none"), "past_key_values": cache})
        looks.clear()
        mask = like(torch.ones(2, MOST_KEYS, dtype=torch.int64))
        token = inputs(name, "none")["input_ids"][:, :1]
        run(model, {"input_ids": token, "attention_mask": mask, "past_key_values": cache})
    assert not looks


@pytest.mark.parametrize("method", METHODS)
def test_the_graph_of_a_step_has_to_do_with_cuda_alone(method: str) -> None:
    """A tensor on the CPU in it would keep torch.compile from recording a CUDA graph."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with fake_cuda():
        model = on_cuda("llama", METHODS[method])
        cache = StaticCache(config=model.config, max_cache_len=MOST_KEYS)
        run(model, {**inputs("llama", "none"), "past_key_values": cache})
        call = {"input_ids": inputs("llama", "none")["input_ids"][:, :1], "past_key_values": cache}
        mask = like(torch.ones(2, MOST_KEYS, dtype=torch.int64))
        with torch.no_grad():
            torch.compile(model, backend=backend, fullgraph=True)(**call, attention_mask=mask)
    torch._dynamo.reset()
    assert len(graphs) == 1
    nodes = list(graphs[0].graph.nodes)
    assert sum("hf_sparsify" in str(node.target) for node in nodes if node.op == "call_function") == 2
    values = [leaf for node in nodes for leaf in tree_leaves(node.meta.get("example_value"))]
    assert {value.device for value in values if isinstance(value, Tensor)} == {CUDA}


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_padded_forward_pass_looks_once(name: str, looks: list[int]) -> None:
    with fake_cuda():
        model = on_cuda(name, METHODS["top-k"])
        run(model, inputs(name, "none"))
        assert not looks
        run(model, inputs(name, "right"))
    assert len(looks) == 1


def test_a_look_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda():
        model, call = on_cuda("llama", METHODS["top-k"]), inputs("llama", "none")
        monkeypatch.setattr(asking, "answers", lambda tensor: True)
        with pytest.raises(DataDependentOutputException):
            run(model, call)


def test_a_copy_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda():
        model, call = on_cuda("llama", METHODS["top-theta"]), inputs("llama", "none")
        for patch in current_patch(model).attention_patches:
            assert patch.thresholds is not None
            patch.thresholds._copies.clear()
            patch.thresholds._on_device.clear()
        with pytest.raises(RuntimeError, match="on the CPU"):
            run(model, call)
