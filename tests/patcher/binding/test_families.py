"""The family matrix: with whole rows a patched model is its dense self, in every dtype, mask and selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.patcher.binding.modules import AttentionModule, attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan, current_patch, remove_patch
from hf_sparsify.patcher.methods import TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import (
    FEW,
    PADDINGS,
    WHOLE,
    close,
    everything,
    far,
    state,
)
from tiny_models import ENCODER_DECODERS, FAMILIES, build, inputs, logits, real_positions
from torch import Tensor, nn

# The whole row is the dense model


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_rows_are_dense_and_few_keys_are_not(name: str, padding: str) -> None:
    model, call = build(name), inputs(name, padding)
    real = real_positions(name, call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call)[real], dense[real])
    assert all(patch.calls > 0 for patch in current_patch(model).module_patches)
    remove_patch(model)
    apply_plan(model, everything(model, FEW))
    assert far(logits(model, call)[real], dense[real])


@pytest.mark.parametrize("name", FAMILIES)
def test_unpatching_restores_the_model_to_the_bit(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    dense, before = logits(model, call), state(model)
    apply_plan(model, everything(model, FEW))
    assert state(model) != before
    logits(model, call)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_their_names_are_untouched(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply_plan(model, everything(model, FEW))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", FAMILIES)
def test_thresholds_far_below_every_score_are_dense_and_high_ones_are_not(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    dense = logits(model, call)
    for theta, sparse in ((-1e9, False), (1e9, True)):
        tables = {
            target.name: ModuleThresholds(torch.tensor([1.0]), torch.full((4, 1), theta), 1, 64)
            for target in attention_modules(model)
        }
        apply_plan(model, everything(model, TopTheta(k=2)), tables)
        out = logits(model, call)
        if sparse:
            assert far(out[real], dense[real])
        else:
            close(out[real], dense[real])
        remove_patch(model)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_bfloat16_models(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    exact = logits(model, call)[real]
    model = model.to(torch.bfloat16)
    dense = logits(model, call)[real].float()
    apply_plan(model, everything(model, WHOLE))
    out = logits(model, call)
    assert out.dtype == torch.bfloat16
    error, dense_error = (out[real].float() - exact).abs().mean(), (dense - exact).abs().mean()
    assert float(error) < 1.5 * float(dense_error)
    assert float(dense_error) < 0.1 * float(exact.std())


def test_float64_models() -> None:
    model, call = build("gpt2").double(), inputs("gpt2", "left")
    real = real_positions("gpt2", call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    torch.testing.assert_close(logits(model, call)[real], dense[real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_masks_that_are_no_interval(name: str) -> None:
    model, call = build(name), inputs(name)
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, 4] = 0
    own = {**call, "attention_mask": torch.ones(2, 1, 12, 12, dtype=torch.bool).tril(1).triu(-2)}
    floats = {**own, "attention_mask": torch.zeros(2, 1, 12, 12).masked_fill(~own["attention_mask"], -1e30)}
    for given in (call, own, floats):
        dense = logits(model, given)
        real = torch.ones(2, 12, dtype=torch.bool)
        if given is call:
            real = call["attention_mask"].bool()
        apply_plan(model, everything(model, WHOLE))
        close(logits(model, given)[real], dense[real])
        remove_patch(model)
    assert far(logits(model, own), logits(model, call))


def test_packed_sequences_stay_apart() -> None:
    model, call = build("llama"), inputs("llama")
    model.config.use_cache = False  # transformers looks for packing only where there is no cache
    call["position_ids"] = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    dense = logits(model, call)
    apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    close(sparse[:, 5:], logits(model, {"input_ids": call["input_ids"][:, 5:]}))
    assert far(sparse, dense)
    remove_patch(model)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call), dense)


# Any part of a model


def chosen(model: nn.Module, part: str) -> list[AttentionModule]:
    found = attention_modules(model)
    return {
        "last layer": [m for m in found if m.layer == 1],
        "cross": [m for m in found if m.kind == "cross"],
        "encoder": [m for m in found if m.stack == "encoder"],
        "decoder self": [m for m in found if m.causal],
    }[part]


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, "last layer") for name in FAMILIES]
    + [(name, part) for name in ENCODER_DECODERS for part in ("cross", "encoder", "decoder self")],
)
def test_only_the_named_modules_are_sparse(name: str, part: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    dense = logits(model, call)
    targets = chosen(model, part)
    assert 0 < len(targets) < len(attention_modules(model))
    seen: dict[str, Tensor] = {}

    def remember(target: AttentionModule) -> Any:
        return lambda module, args, output: seen.__setitem__(target.name, output[0])

    hooks = [m.module.register_forward_hook(remember(m)) for m in attention_modules(model)]
    logits(model, call)
    dense_seen = dict(seen)
    for method in (WHOLE, FEW):
        apply_plan(model, {target.name: method for target in targets})
        out = logits(model, call)
        if method is WHOLE:
            close(out[real], dense[real])
        else:
            assert far(out[real], dense[real])
            first = min(list(seen).index(target.name) for target in targets)
            source = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
            for target_name in list(seen)[:first]:
                valid = source if seen[target_name].shape[1] == 12 else real
                close(seen[target_name][valid], dense_seen[target_name][valid])
            first_name = list(seen)[first]
            valid = source if seen[first_name].shape[1] == 12 else real
            assert far(seen[first_name][valid], dense_seen[first_name][valid])
        remove_patch(model)
    for hook in hooks:
        hook.remove()
