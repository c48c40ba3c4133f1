"""Which layers are trained whole: those that give what their form says, and are called and stored as usual."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from feed_forward_models import call_of, every_layer, make
from feed_forward_training import SOME, WHOLE, by_down_projections, only_patch, same, train
from hf_sparsify.patcher.binding.patching import apply_plan
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn
from transformers.models.llama.modeling_llama import LlamaMLP


class Residual(LlamaMLP):
    """The same names, and a term that they do not show."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Swapped(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class Halved(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [Residual, Swapped, Halved])
def test_a_forward_that_gives_something_else_is_found_out(
    own: type[nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "__module__", LlamaMLP.__module__)
    model, call = make("llama").to(dtype), call_of("llama")
    for layer in model.model.layers:
        layer.mlp.__class__ = own
    plan = every_layer(model, SOME)
    expected = train(by_down_projections(model, plan), call)
    patch = apply_plan(model, plan)
    same(train(model, call), expected, 0)
    assert set(patch.paths) == {"torch: gradients"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finding_out_leaves_no_trace(dtype: torch.dtype) -> None:
    model, call = make("t5-gated").to(dtype).train(), call_of("t5-gated")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    patch = apply_plan(model, every_layer(model, SOME))
    first = train(model, call)
    same(train(model, call), first, 0)  # from the same seed
    assert patch.paths == {WHOLE: 2 * len(patch.feed_forward)}


def test_finding_out_is_no_part_of_what_a_checkpoint_caches() -> None:
    layer = only_patch(make("llama"))
    x = torch.randn(1, 5, 32, requires_grad=True)

    def gradient(save: bool) -> Tensor:
        contexts = (
            partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default]) if save else noop_context_fn
        )
        out = checkpoint(layer.module, x, use_reentrant=False, context_fn=contexts)
        return torch.autograd.grad(out.square().sum(), x)[0]

    found = gradient(save=True)
    torch.testing.assert_close(found, gradient(save=False))
    assert layer.down.paths[WHOLE]


class Unusual(nn.ReLU):
    """Of a class that nobody knows."""


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Softmax(-1), nn.RReLU(), nn.PReLU(), Unusual()])
def test_activations_that_are_not_known_to_be_elementwise_are_left_to_autograd(activation: nn.Module) -> None:
    model, call = make("llama"), call_of("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = activation
    plan = every_layer(model, SOME)
    expected = train(by_down_projections(model, plan), call)
    patch = apply_plan(model, plan)
    same(train(model, call), expected, 0)
    assert WHOLE not in patch.paths


def test_weights_that_are_there_only_during_a_call() -> None:
    model, call = make("llama"), call_of("llama")
    plan = every_layer(model, SOME)
    expected = train(by_down_projections(model, plan), call)

    def partition(linear: nn.Linear) -> None:
        whole = linear.weight.data
        linear.weight.data = torch.empty(0)
        linear.register_forward_pre_hook(lambda own, args: setattr(own.weight, "data", whole))

    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            partition(linear)
    patch = apply_plan(model, plan)
    same(train(model, call), expected, 0)
    assert WHOLE not in patch.paths


def test_weights_that_are_taken_apart_after_the_patch() -> None:
    model, call = make("llama"), call_of("llama")
    patch = apply_plan(model, every_layer(model, SOME))
    for layer in model.model.layers:
        whole = layer.mlp.down_proj.weight.data
        layer.mlp.down_proj.weight.data = torch.empty(0)
        layer.mlp.down_proj.register_forward_pre_hook(lambda own, args, whole=whole: setattr(own.weight, "data", whole))
    train(model, call)
    assert WHOLE not in patch.paths


def test_other_arguments_go_the_ordinary_way() -> None:
    model = make("llama")
    layer = only_patch(model)
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(layer.module(x=x), layer.module(x))
    assert layer.down.paths == {"torch: gradients": 1, WHOLE: 1}
    with pytest.raises(TypeError, match="positional argument"):
        layer.module(x, x)


def test_a_forward_with_more_arguments_is_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(LlamaMLP):
        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    monkeypatch.setattr(Open, "__module__", LlamaMLP.__module__)
    model = make("llama")
    model.model.layers[0].mlp.__class__ = Open
    assert [layer.layer is None for layer in apply_plan(model, every_layer(model, SOME)).feed_forward] == [True, False]


@pytest.mark.parametrize("over", ["weights", "inputs"])
def test_functional_gradients(over: str) -> None:
    model, call = make("t5"), call_of("t5")
    model.set_attn_implementation("eager")
    patch = apply_plan(model, every_layer(model, SOME))
    embeds = model.get_input_embeddings()(call["input_ids"]).detach()
    rest = {key: value for key, value in call.items() if key != "input_ids"}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()} if over == "weights" else {}

    def loss(weights: dict[str, Tensor], embeds: Tensor) -> Tensor:
        out: Tensor = functional_call(model, weights, kwargs={**rest, "inputs_embeds": embeds}).logits.square().sum()
        return out

    by_weights, by_inputs = grad(loss, (0, 1))(weights, embeds)
    assert patch.paths
    assert WHOLE not in patch.paths
    leaf = embeds.clone().requires_grad_()
    model.zero_grad()
    loss({}, leaf).backward()
    assert WHOLE in patch.paths
    torch.testing.assert_close(by_inputs, leaf.grad, rtol=1e-4, atol=1e-4)
    for name, found in by_weights.items():
        expected = model.get_parameter(name).grad
        expected = torch.zeros_like(found) if expected is None else expected
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
