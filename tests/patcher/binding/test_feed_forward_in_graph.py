"""A model with sparse feed-forward layers is one graph, gives what it gives uncompiled, and sees its weights change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hf_sparsify
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from feed_forward_models import call_of, output
from hf_sparsify.patcher.binding.feed_forward import FeedForwardPatch, feed_forward_modules
from hf_sparsify.patcher.kernels import feed_forward as kernel
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import TopK, TopKFeedForward
from patched_models import close, far, one_layer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.pytorch_utils import Conv1D

SOME = TopKFeedForward(k=4)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(method: TopKFeedForward = SOME, module: nn.Module | None = None) -> FeedForwardPatch:
    """A patched down-projection from 40 to 16."""
    torch.manual_seed(0)
    patch = FeedForwardPatch("layer", module or nn.Linear(40, 16), method)
    patch.install()
    return patch


def graphs_of(module: nn.Module) -> tuple[Any, list[torch.fx.GraphModule]]:
    """The compiled module and its graphs, which may break."""
    backend = torch._dynamo.testing.EagerAndRecordGraphs()
    return torch.compile(module, backend=backend), backend.graphs


def in_graph(graphs: list[torch.fx.GraphModule]) -> bool:
    return any(node.target is torch.ops.hf_sparsify.feed_forward.default for g in graphs for node in g.graph.nodes)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama", SOME),
        pytest.param("gpt2", TopKFeedForward(keep=0.1), marks=pytest.mark.slow),
        pytest.param("t5", SOME, marks=pytest.mark.slow),
    ],
)
def test_attention_and_feed_forward_are_one_graph(name: str, method: TopKFeedForward) -> None:
    model, call = one_layer(name), call_of(name)
    longer = {key: torch.cat([value, value], 1) for key, value in call.items()}
    dense = output(model, call)
    hf_sparsify.patch(model, TopK(k=3), method)
    assert far(output(model, call), dense)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for given in (call, longer):
        close(output(compiled, given), output(model, given))
    assert counter.frame_count == 1


@torch.no_grad()
def test_what_weights_become_is_seen_in_the_graph() -> None:
    patch, hidden = layer(), torch.randn(3, 40)
    module = patch.module
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for change in (
        lambda: None,
        lambda: module.weight.mul_(-1),
        lambda: module.weight.data[:, ::2].mul_(3),  # as merging an adapter does: no trace but the values
        lambda: module.load_state_dict({"weight": torch.randn(16, 40), "bias": torch.randn(16)}),
        lambda: setattr(module.weight, "data", torch.randn(16, 40)),
        lambda: setattr(module, "weight", nn.Parameter(torch.randn(16, 40))),
    ):
        change()
        close(compiled(hidden), nn.functional.linear(SOME.mask(hidden), module.weight, module.bias))
    assert patch.calls == 0  # all in the graph


@pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")
@torch.no_grad()
def test_graphs_reach_the_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    project = kernel.project
    monkeypatch.setattr(kernel, "project", lambda *given: calls.append(1) or project(*given))
    for module in (nn.Linear(40, 16), Conv1D(16, 40)):
        torch.compile(layer(module=module).module, backend="aot_eager", fullgraph=True)(torch.randn(3, 40))
    assert len(calls) == 2


def test_gradients_flow_outside_the_graph() -> None:
    module, grads = layer().module, []
    hidden = torch.randn(3, 40)
    compiled, graphs = graphs_of(module)
    for forward in (module, compiled):
        module.zero_grad()
        given = hidden.clone().requires_grad_()
        forward(given).square().sum().backward()
        grads.append(torch.cat([tensor.grad.flatten() for tensor in (given, module.weight, module.bias)]))
    assert grads[0].abs().max() > 0
    close(grads[1], grads[0])
    assert not in_graph(graphs)


@dataclass(frozen=True)
class Other(TopKFeedForward):
    """A method of someone else's that keeps nothing."""

    def mask(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class Double(ModelHook):
    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


class Packed(nn.Linear):
    """As libraries have it that pack weights: a class of its own."""


@torch.no_grad()
@pytest.mark.parametrize("case", ["plain", "meter", "hook", "packed", "other method", "autocast"])
def test_what_has_its_own_way_runs_outside_the_graph(case: str) -> None:
    module = Packed(40, 16) if case == "packed" else nn.Linear(40, 16)
    if case == "hook":
        add_hook_to_module(module, Double())
    patch = layer(Other(k=4) if case == "other method" else SOME, module)
    patch.meter = Meter() if case == "meter" else None
    compiled, graphs = graphs_of(module)
    hidden = torch.randn(3, 40)
    with torch.autocast("cpu", enabled=case == "autocast"):
        close(compiled(hidden), module(hidden))
    assert in_graph(graphs) == (case == "plain")
    assert patch.calls == (1 if case == "plain" else 2)


def test_an_exported_model_is_sparse_without_its_patch() -> None:
    model, call = one_layer("bert"), call_of("bert")
    dense = output(model, call)
    with hf_sparsify.patch(model, TopK(k=3), SOME):
        sparse = output(model, call)
        program = torch.export.export(model, (), call)
    found = program.module()
    assert far(sparse, dense)
    close(output(found, call), sparse)
    weight = feed_forward_modules(model)[0].module.weight
    weight.data.mul_(-1)  # the program has the model's own weights
    assert far(output(found, call), sparse)
