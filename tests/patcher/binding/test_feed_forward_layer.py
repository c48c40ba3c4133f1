"""Training of patched feed-forward layers: whole layers where their form is known, else their down-projections."""

from __future__ import annotations

import copy

import pytest
import torch
from feed_forward_models import NAMES, call_of, every_layer, make
from feed_forward_training import SOME, WHOLE, by_down_projections, only_patch, same, train
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import TopKFeedForward
from live_storage import LiveStorage
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

# Layers of these families are no module of their own, or calculate in a way of their own.
BY_DOWN_PROJECTION = {"bert", "bert-cross", "bart", "opt", "whisper", "distilbert", "albert"}
SOME_BY_DOWN_PROJECTION = {"moonshine"}  # the encoder's layers are as usual, the decoder's are not


@pytest.mark.parametrize("name", NAMES)
def test_the_same_gradients_as_by_autograd_in_every_family(name: str) -> None:
    model = make(name).double()
    call = {key: value.double() if value.is_floating_point() else value for key, value in call_of(name).items()}
    plan = every_layer(model, SOME)
    expected = train(by_down_projections(model, plan), call)
    dense = train(model, call)
    patch = apply_plan(model, plan)
    same(train(model, call), expected, 1e-10)
    by_down = {"torch: gradients"} if name in BY_DOWN_PROJECTION | SOME_BY_DOWN_PROJECTION else set()
    assert set(patch.paths) == by_down | (set() if name in BY_DOWN_PROJECTION else {WHOLE})
    remove_patch(model)
    same(train(model, call), dense, 0)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["t5-gated", "gpt2", "modernbert"])
def test_dropout_in_training_mode_and_none_in_evaluation(name: str) -> None:
    model = make(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    patch = apply_plan(model, every_layer(model, SOME))
    layers = [layer.layer for layer in patch.feed_forward if layer.layer is not None]
    x = torch.randn(2, 5, 32)
    still = [layer.module(x) for layer in layers]
    assert all(torch.equal(layer.module(x), out) for layer, out in zip(layers, still, strict=True))
    model.train()
    assert all((layer.module(x) - out).abs().max() > 1e-3 for layer, out in zip(layers, still, strict=True))
    assert set(patch.paths) == {WHOLE}


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_autocast(name: str) -> None:
    model, call = make(name), call_of(name)
    plan = every_layer(model, TopKFeedForward(k=20))
    other = by_down_projections(model, plan)
    exact = train(other, call)
    patch = apply_plan(model, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = train(model, call), train(other, call)
    assert set(patch.paths) == {WHOLE}
    for key, expected in exact[1].items():
        error, usual = (float((found[1][key] - expected).norm()) for found in (ours, theirs))
        assert error <= 1.5 * usual + 1e-3 * float(expected.norm())
        assert ours[1][key].dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, call = make("llama"), call_of("llama")
    patch = apply_plan(model, every_layer(model, SOME))
    expected = train(model, call)
    calls = patch.paths[WHOLE]
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    same(train(model, {**call, "use_cache": False}), expected, 0)
    assert patch.paths[WHOLE] == calls * (2 if reentrant else 3)  # the re-entrant forward pass wants no gradients


def test_whole_layers_are_for_gradients_alone() -> None:
    model, call = make("llama"), call_of("llama")
    layer = only_patch(model)
    with torch.no_grad():
        model(**call)
    model.requires_grad_(False)
    model(**call)
    assert WHOLE not in layer.down.paths
    layer.module.up_proj.weight.requires_grad_()
    model(**call)
    assert layer.down.paths[WHOLE] == 1


def test_calls_and_activations_are_counted_once() -> None:
    model, call = make("llama"), call_of("llama")
    patch = apply_plan(model, every_layer(model, SOME))
    with patch.metered(Meter()) as trained:
        model(**call)
    with patch.metered(Meter()) as evaluated, torch.no_grad():
        model(**call)
    assert trained.to_dict() == evaluated.to_dict()
    assert [layer.calls for layer in patch.feed_forward] == [2, 2]


@pytest.mark.parametrize("what", ["hook", "forward", "lower dtype", "other linear", "all kept"])
def test_a_layer_that_is_not_as_usual_goes_by_its_down_projection(what: str) -> None:
    model, call, seen = make("llama"), call_of("llama"), []
    plan = every_layer(model, TopKFeedForward(keep=1.0) if what == "all kept" else SOME)
    patch = apply_plan(model, plan)
    for layer in patch.feed_forward:
        mlp = layer.layer.module  # type: ignore[union-attr]
        if what == "hook":
            mlp.act_fn.register_forward_hook(lambda *args: seen.append(args[0]))
        elif what == "forward":
            mlp.up_proj.forward = lambda x, own=mlp.up_proj: seen.append(own) or type(own).forward(own, x)
        elif what == "lower dtype":
            mlp.up_proj.register_forward_pre_hook(lambda part, args: (args[0].to(part.weight.dtype),))
            mlp.up_proj.to(torch.float64)
            mlp.up_proj.register_forward_hook(lambda part, args, out: seen.append(part) or out.float())
        elif what == "other linear":
            mlp.up_proj = type("Adapted", (nn.Linear,), {})(32, 40, bias=False)
    train(model, call)
    assert WHOLE not in patch.paths
    assert sum(patch.paths.values()) == 2
    assert len(seen) == (2 if what in ("hook", "forward", "lower dtype") else 0)


def test_a_module_that_calculates_something_else_is_left_to_autograd() -> None:
    model = make("llama")

    class Scaled(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.factor

    mlp = model.model.layers[0].mlp
    mlp.factor, mlp.__class__ = 2.0, Scaled
    Scaled.__module__ = "transformers.models.llama.modeling_llama"
    patch = apply_plan(model, every_layer(model, SOME))
    assert [layer.layer is None for layer in patch.feed_forward] == [True, False]


def test_copies_train_on_their_own_weights() -> None:
    model, call = make("llama"), call_of("llama")
    apply_plan(model, every_layer(model, SOME))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    expected = train(by_down_projections(dense_copy(other), every_layer(other, SOME)), call)
    same(train(other, call), expected, 1e-4)


def dense_copy(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    remove_patch(other)
    return other


@pytest.mark.slow
def test_compiled_models_train_as_uncompiled_ones() -> None:
    model, call = make("llama"), call_of("llama")
    patch = apply_plan(model, every_layer(model, SOME))
    expected = train(model, call)
    compiled = torch.compile(model, backend="eager")
    same((train(compiled, call)[0], {n: p.grad for n, p in model.named_parameters()}), expected, 1e-5)  # type: ignore[misc]
    assert set(patch.paths) == {WHOLE}


def test_memory_of_a_training_step_hardly_grows_with_d_ff() -> None:
    def peak(d_ff: int, whole: bool) -> int:
        config = LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=d_ff, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        for layer in apply_plan(model, every_layer(model, SOME)).feed_forward:
            if not whole:
                layer.layer.uninstall()  # type: ignore[union-attr]
        with LiveStorage() as storage:
            model(input_ids=torch.ones(8, 256, dtype=torch.long)).logits.sum().backward()
        return storage.peak

    assert peak(1024, whole=True) < 1.6 * peak(512, whole=True)
    assert peak(1024, whole=False) > 3 * peak(1024, whole=True)
