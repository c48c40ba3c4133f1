"""Weights of patched feed-forward layers: trained, changed in place, offloaded, packed by a library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import hf_sparsify
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from feed_forward_models import call_of, every_layer, make, output
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.kernels.weight_rows import copies
from hf_sparsify.patcher.methods import TopKFeedForward
from patched_models import close, far, state
from torch import Tensor, nn

SOME = TopKFeedForward(k=4)
ONE = {"input_ids": torch.tensor([[9]])}


def down_projection(model: nn.Module) -> nn.Linear:
    module = feed_forward_modules(model)[0].module
    assert isinstance(module, nn.Linear)
    return module


def masked(model: nn.Module, call: dict[str, Tensor]) -> Tensor:
    """The sparse output without gathering, which is left out where gradients are wanted."""
    return model(**call).logits.detach()


# Changes


def assign(module: nn.Linear) -> None:
    module.load_state_dict({"weight": -module.weight.detach()}, assign=True)


def step(module: nn.Linear) -> None:
    module.weight.grad = torch.ones_like(module.weight)
    torch.optim.AdamW([module.weight], lr=0.1).step()


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "in place": lambda module: module.weight.detach().mul_(-1),
    "through data": lambda module: module.weight.data.mul_(-1),
    "one row through data": lambda module: module.weight.data[6].mul_(-1),
    "one column through data": lambda module: module.weight.data[:, 6].fill_(9),
    "other data": lambda module: setattr(module.weight, "data", -module.weight.data),
    "another parameter": lambda module: setattr(module, "weight", nn.Parameter(-module.weight.detach())),
    "load_state_dict": lambda module: module.load_state_dict({"weight": -module.weight.detach()}),
    "load_state_dict, assigned": assign,
    "an optimizer": step,
    "another precision": lambda module: module.to(torch.bfloat16).to(torch.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_noticed(change: str) -> None:
    model = make("llama")
    if change == "one column through data":  # else it may not be among the kept ones
        apply_plan(model, every_layer(model, TopKFeedForward(k=5)))
        down_projection(model).weight.data[:, 6] = 0
        torch.nn.init.constant_(model.model.layers[0].mlp.up_proj.weight[6], 50.0)
    else:
        apply_plan(model, every_layer(model, SOME))
    before = output(model, ONE)
    close(before, masked(model, ONE))
    CHANGES[change](down_projection(model))
    after = output(model, ONE)
    assert not torch.equal(after, before)
    close(after, masked(model, ONE))


def test_a_model_that_becomes_double() -> None:
    model = make("llama")
    apply_plan(model, every_layer(model, SOME))
    output(model, ONE)
    model.double()
    assert output(model, ONE).dtype == torch.float64
    torch.testing.assert_close(output(model, ONE), masked(model, ONE), rtol=1e-12, atol=1e-12)


def test_unchanged_weights_are_copied_once_and_given_back() -> None:
    model = make("llama")
    apply_plan(model, every_layer(model, SOME))
    output(model, ONE)
    weights = [target.module.weight for target in feed_forward_modules(model)]
    made = [copies[weight] for weight in weights]
    with torch.inference_mode():
        output(model, ONE)
    assert all(copies[weight] is copy for weight, copy in zip(weights, made, strict=True))
    remove_patch(model)
    assert not any(weight in copies for weight in weights)


def test_under_autocast_the_dtype_is_that_of_the_dense_layer() -> None:
    model = make("bert")
    down = feed_forward_modules(model)[0].module
    apply_plan(model, every_layer(model, SOME))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert down(torch.randn(1, 40)).dtype == torch.bfloat16
        assert down(torch.randn(9, 40)).dtype == torch.bfloat16


def test_a_mismatched_dtype_fails_as_in_the_dense_layer() -> None:
    model = make("llama")
    apply_plan(model, every_layer(model, SOME))
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        down_projection(model)(torch.randn(1, 40, dtype=torch.float64))


# Training


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_training_reaches_every_weight_and_leaves_what_is_dropped(name: str) -> None:
    model = make(name).train()
    apply_plan(model, every_layer(model, SOME))
    call = {key: value[:1, :1] for key, value in call_of(name).items()}  # few enough tokens to gather
    model(**call).logits.square().mean().backward()
    for target in feed_forward_modules(model):
        gradient = target.module.weight.grad
        assert isinstance(gradient, Tensor)
        used = gradient.abs().sum(0) > 0
        assert 0 < int(used.sum()) <= 4


# Hooks of Accelerate


class Double(ModelHook):
    """Changes what a layer gives, so that a lost hook is seen."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return output * 2


@pytest.mark.parametrize("offload", [False, True])
def test_offloaded_models(offload: bool) -> None:
    model, call = make("llama"), call_of("llama")
    plain = make("llama")
    apply_plan(plain, every_layer(plain, SOME))
    if offload:
        accelerate.cpu_offload(model, execution_device="cpu")
        assert down_projection(model).weight.device.type == "meta"
    else:
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    before, dense = state(model), output(model, call)
    apply_plan(model, every_layer(model, SOME))
    for given in (call, ONE):
        close(output(model, given), output(plain, given))
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(output(model, call), dense)


def test_a_model_that_is_offloaded_while_it_is_patched() -> None:
    model, plain = make("llama"), make("llama")
    dense = output(plain, ONE)
    for one in (model, plain):
        apply_plan(one, every_layer(one, SOME))
    accelerate.cpu_offload(model, execution_device="cpu")
    for call in (call_of("llama"), ONE, ONE):
        close(output(model, call), output(plain, call))
    remove_patch(model)
    assert torch.equal(output(model, ONE), dense)


@pytest.mark.parametrize("hook", [Double(), AlignDevicesHook("cpu")], ids=["doubling", "aligning"])
def test_hooks_that_were_put_over_a_patch(hook: ModelHook) -> None:
    reference, model, call = make("llama"), make("llama"), call_of("llama")
    add_hook_to_module(down_projection(reference), hook)
    hooked = output(reference, call)
    patch = apply_plan(model, every_layer(model, SOME))
    add_hook_to_module(down_projection(model), hook)
    apply_plan(reference, every_layer(reference, SOME))
    sparse = output(reference, call)
    close(output(model, call), sparse)
    for _ in range(2):
        with patch.paused():
            assert torch.equal(output(model, call), hooked)
        close(output(model, call), sparse)
    remove_patch(model)
    assert torch.equal(output(model, call), hooked)
    apply_plan(model, every_layer(model, SOME))
    close(output(model, call), sparse)
    remove_patch(model)
    remove_hook_from_module(down_projection(model))
    assert torch.equal(output(model, call), output(make("llama"), call))


# Packed weights


class PackedLinear(nn.Module):
    """As libraries for GPTQ or AWQ have it: integers and scales, and no `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ (self.qweight * self.scales).t()


class Wrapped(Tensor):
    """As torchao has it: a parameter of a class of its own inside an ordinary Linear."""


def test_modules_that_hold_packed_weights() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = PackedLinear(layer.mlp.down_proj)
    check_packed(model)


def test_parameters_of_another_class() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight.detach().as_subclass(Wrapped))
    assert type(model.model.layers[0].mlp.down_proj.weight) is not nn.Parameter
    check_packed(model)


def check_packed(model: Any) -> None:
    call = call_of("llama")
    dense, before = output(model, call), state(model)
    patch = hf_sparsify.patch(model, None, TopKFeedForward(keep=1.0))
    assert len(patch.feed_forward) == 2
    assert torch.equal(output(model, call), dense)
    hf_sparsify.unpatch(model)
    with hf_sparsify.patch(model, None, SOME):
        assert far(output(model, call), dense)
        output(model, ONE)
        assert not any(weight in copies for weight in model.parameters())
    assert state(model) == before
    assert torch.equal(output(model, call), dense)
