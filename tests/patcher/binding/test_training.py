"""Patched models train: with activation checkpointing, compiled, under autocast, and to what dense attention learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import close, everything, one_layer
from tiny_models import build, inputs, real_positions
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

MEANS = TopK(k=3, compensation="sdc+vmc")
METHODS = (MEANS, TopTheta(k=2, compensation="sdc", placement="max-relative", denominator="exp-threshold"))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sparse(model: PreTrainedModel, method: AttentionMethod) -> PreTrainedModel:
    tables = {}
    if method.needs_thresholds:
        table = ModuleThresholds(torch.tensor([1.0]), torch.full((4, 1), -2.0), 1, 64, placement="max-relative")
        tables = {target.name: table for target in attention_modules(model)}
    apply_plan(model, everything(model, method), tables)
    return model


def gradients(model: nn.Module, name: str, forward: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """What a training step would change, by parameter."""
    call = inputs(name, "right")
    model.zero_grad()
    output = (model if forward is None else forward)(**call)
    scores = output.start_logits if "start_logits" in output else output.logits
    scores[real_positions(name, call)].float().square().mean().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        close(found[key], tensor)


@pytest.mark.parametrize("method", METHODS, ids=["top-k", "top-theta"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_activation_checkpointing_changes_no_gradient(name: str, method: AttentionMethod) -> None:
    model = sparse(build(name), method)
    expected = gradients(model, name)
    assert all(torch.isfinite(tensor).all() for tensor in expected.values())
    for module in model.modules():  # checkpoints are made in training only, and the tiny models have dropout there
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name_of_rate in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name_of_rate, None), float):
                setattr(module, name_of_rate, 0.0)
    model.train()
    model.enable_input_require_grads()
    first = next(getattr(part, PATCH_ATTRIBUTE) for part in model.modules() if hasattr(part, PATCH_ATTRIBUTE))
    for reentrant in (False, True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        calls = first.calls
        same(gradients(model, name), expected)
        assert first.calls == calls + 2  # the second in the backward pass


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("method", METHODS, ids=["top-k", "top-theta"])
def test_a_compiled_model_has_the_gradients_of_itself(method: AttentionMethod) -> None:
    model = sparse(one_layer("llama"), method)
    expected = gradients(model, "llama")
    same(gradients(model, "llama", torch.compile(model, backend="aot_eager")), expected)


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", MEANS), ("bert", Clustered(clusters=3, k=4)), ("t5", METHODS[1])],
    ids=["top-k", "clustered", "top-theta"],
)
def test_torch_func_gives_the_same_gradients(name: str, method: AttentionMethod) -> None:
    model = sparse(build(name), method)
    expected = gradients(model, name)
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}
    call = inputs(name, "right")

    def loss(given: dict[str, Tensor]) -> Tensor:
        output = functional_call(model, given, kwargs=call)
        scores = output.start_logits if "start_logits" in output else output.logits
        return scores[real_positions(name, call)].square().mean()  # type: ignore[no-any-return]

    found = grad(loss)(parameters)
    same({key: found[key] for key in expected}, expected)
    directions = {key: torch.cos(parameter) for key, parameter in parameters.items()}
    slope = jvp(loss, (parameters,), (directions,))[1]
    close(slope, torch.stack([(expected[key] * directions[key]).sum() for key in expected]).sum())


def test_autocast_trains() -> None:
    model = sparse(build("llama"), MEANS)
    expected = gradients(model, "llama")
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, "llama")
    assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in found.values())
    for key in ("lm_head.weight", "model.layers.1.self_attn.v_proj.weight"):
        cosine = torch.nn.functional.cosine_similarity(found[key].flatten(), expected[key].flatten(), dim=0)
        assert cosine > 0.95


def test_attention_dropout_has_one_mask_for_both_passes() -> None:
    """A finite difference along the gradient, with the masks of one seed."""
    model = sparse(build("llama").double(), TopK(k=64))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    model.train()
    weight = model.model.layers[0].self_attn.v_proj.weight

    def loss() -> Tensor:
        torch.manual_seed(0)
        return model(**inputs("llama")).logits.square().mean()  # type: ignore[no-any-return]

    (slope,) = torch.autograd.grad(loss(), weight)
    step, norm = 1e-3, float(slope.norm())
    with torch.no_grad():
        weight += step * slope / norm
        above = float(loss())
        weight -= 2 * step * slope / norm
        below = float(loss())
    assert (above - below) / (2 * step) == pytest.approx(norm, rel=1e-2)


LETTERS, DIGITS, PAIRS = 12, 4, 16


def recall(generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Tokens that are a letter and a digit each, then one of the letters; and its digit."""
    letters = torch.randint(LETTERS, (batch, PAIRS), generator=generator)
    digit_of = torch.randint(DIGITS, (batch, LETTERS), generator=generator)
    asked = letters.gather(1, torch.randint(PAIRS, (batch, 1), generator=generator))
    pairs = letters * DIGITS + digit_of.gather(1, letters)
    return torch.cat([pairs, LETTERS * DIGITS + asked], 1), digit_of.gather(1, asked).squeeze(1)


def learnt(k: int | None, seed: int, steps: int = 250) -> float:
    """How often a tiny decoder that was trained from scratch gives the right digit on new sequences."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=LETTERS * (DIGITS + 1), **sizes))
    if k is not None:
        apply_plan(model, everything(model, TopK(k=k)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens, digits = recall(generator, 64)
        loss = nn.functional.cross_entropy(model(input_ids=tokens).logits[:, -1], digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        tokens, digits = recall(generator, 512)
        return float((model(input_ids=tokens).logits[:, -1].argmax(-1) == digits).float().mean())


@pytest.mark.slow
def test_a_model_learns_as_well_as_with_dense_attention() -> None:
    """Case 38 of test_row_gradients: looking up, from scratch, three seeds."""
    dense, few = ([learnt(k, seed) for seed in range(3)] for k in (None, 8))
    assert sum(few) / 3 >= sum(dense) / 3 - 0.05
