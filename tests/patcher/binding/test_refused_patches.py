"""Patches that are refused, by name, and change nothing."""

from __future__ import annotations

import pytest
import torch
import transformers
from hf_sparsify.errors import NotPatchableError, RecipeMismatchError, UnsupportedAttentionArgument, UsageError
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import (
    apply_plan,
    current_patch,
    remove_patch,
)
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import (
    FEW,
    WHOLE,
    close,
    everything,
    patched,
    state,
)
from tiny_models import FAMILIES, build, inputs, logits, real_positions
from torch import nn


def sliced_heads(model: nn.Module) -> dict[str, ModuleThresholds]:
    last = attention_modules(model)[-1].name
    return {last: ModuleThresholds(torch.tensor([4.0]), torch.zeros(2, 1), 1, 64)}


@pytest.mark.parametrize(
    ("name", "plan", "error", "message"),
    [
        ("llama", {}, UsageError, "names no module"),
        (
            "llama",
            {"model.layers.0.self_attn": FEW, "model.layers.7.self_attn": FEW},
            RecipeMismatchError,
            r"layers\.7",
        ),
        ("llama", {"model.layers.0.mlp": FEW}, RecipeMismatchError, r"layers\.0\.mlp"),
        (
            "bert",
            {"bert.encoder.layer.0.attention.self": TopK(k=3, protect_recent=1)},
            NotPatchableError,
            "bidirectional",
        ),
        (
            "t5",
            {
                "decoder.block.0.layer.0.SelfAttention": TopK(k=3, protect_recent=1),
                "decoder.block.0.layer.1.EncDecAttention": TopK(k=3, protect_recent=1),
            },
            NotPatchableError,
            "EncDecAttention is cross-attention",
        ),
    ],
    ids=["empty plan", "unknown layer", "no attention", "recent keys both ways", "recent keys across"],
)
def test_a_refused_plan_changes_nothing(
    name: str, plan: dict[str, AttentionMethod], error: type[Exception], message: str
) -> None:
    model, call = build(name), inputs(name)
    dense, before = logits(model, call), state(model)
    with pytest.raises(error, match=message):
        apply_plan(model, plan)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("name", FAMILIES)
def test_thresholds_for_another_number_of_heads_are_refused(name: str) -> None:
    model = build(name)
    before = state(model)
    last = attention_modules(model)[-1].name
    with pytest.raises(RecipeMismatchError, match=f"{last} are for 2 heads, the module has 4"):
        apply_plan(model, everything(model, TopTheta(k=2)), sliced_heads(model))
    assert state(model) == before


def test_a_family_that_neither_route_reaches_is_refused() -> None:
    model = transformers.YosoModel(
        transformers.YosoConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20
        )
    )
    before = state(model)
    with pytest.raises(NotPatchableError, match="YosoModel cannot be patched: its YosoSelfAttention"):
        apply_plan(model, {"encoder.layer.0.attention.self": FEW})
    assert state(model) == before


def test_patching_twice_and_unpatching_a_dense_model_are_refused() -> None:
    model, call = build("llama"), inputs("llama")
    with pytest.raises(UsageError, match="not patched"):
        remove_patch(model)
    patch = apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with pytest.raises(UsageError, match="already patched"):
        apply_plan(model, everything(model, WHOLE))
    assert current_patch(model) is patch
    assert torch.equal(logits(model, call), sparse)


def test_a_part_of_a_patched_model_is_not_patched_again() -> None:
    model, call = build("llama"), inputs("llama")
    dense = logits(model, call)
    apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with pytest.raises(UsageError, match="already patched"):
        apply_plan(model.model, everything(model.model, WHOLE))
    assert torch.equal(logits(model, call), sparse)
    remove_patch(model)
    assert torch.equal(logits(model, call), dense)


def test_a_second_model_on_the_config_of_a_patched_one_is_refused() -> None:
    first = build("llama")
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    call = inputs("llama", "left")
    real = real_positions("llama", call)
    dense = logits(first, call)
    apply_plan(first, everything(first, FEW))
    sparse = logits(first, call)
    close(logits(second, call)[real], dense[real])
    # Unpatching either would switch the other off without a word.
    with pytest.raises(UsageError):
        apply_plan(second, everything(second, FEW))
    assert torch.equal(logits(first, call), sparse)
    remove_patch(first)
    assert torch.equal(logits(second, call), dense)


def test_an_argument_that_is_not_known_is_refused_with_the_name_of_the_module() -> None:
    model, call = patched("llama", FEW), inputs("llama")
    with pytest.raises(UnsupportedAttentionArgument, match=r"^model\.layers\.0\.self_attn hands .* some_new_argument"):
        model(**call, some_new_argument=torch.ones(1))
    assert model(**call, some_new_argument=None).logits.shape == (2, 12, 97)
