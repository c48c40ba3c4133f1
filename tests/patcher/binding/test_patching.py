"""Patching and undoing: copies, saved models, metering, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_sparsify.errors import NotPatchableError, RecipeMismatchError, UnsupportedAttentionArgument, UsageError
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME, PATCH_ATTRIBUTE
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import (
    MODEL_ATTRIBUTE,
    Patch,
    apply_plan,
    call_paths,
    current_patch,
    describe_paths,
    remove_patch,
)
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, Method, TopK, TopKFeedForward, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import (
    FEW,
    WHOLE,
    close,
    everything,
    far,
    patched,
    state,
)
from tiny_models import FAMILIES, build, inputs, logits, real_positions
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

# Copies, files, training


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_deep_copy_is_patched_on_its_own(name: str) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, call), sparse)
    assert current_patch(twin) is not current_patch(model)
    mine = {id(module) for module in twin.modules()}
    assert all(id(module) in mine for module, _ in current_patch(twin).attention)
    calls = [patch.calls for patch in current_patch(model).module_patches]
    logits(twin, call)
    assert [patch.calls for patch in current_patch(model).module_patches] == calls
    remove_patch(twin)
    assert torch.equal(logits(twin, call), logits(build(name), call))
    assert torch.equal(logits(model, call), sparse)
    remove_patch(model)
    assert torch.equal(logits(model, call), logits(twin, call))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_pickled_model_comes_back_patched_even_where_nothing_is_registered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    content = pickle.dumps(model)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    monkeypatch.delitem(AttentionInterface._global_mapping, ATTENTION_NAME)
    back = pickle.loads(content)  # noqa: S301
    assert torch.equal(logits(back, call), sparse)
    remove_patch(back)
    assert torch.equal(logits(back, call), logits(build(name), call))


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_a_saved_patched_model_loads_plainly_and_dense(name: str, tmp_path: Path) -> None:
    model, call = build(name), inputs(name)
    dense, implementation = logits(model, call), model.config._attn_implementation_internal
    apply_plan(model, everything(model, FEW))
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert "hf_sparsify" not in file.read_text()
    back = type(model).from_pretrained(tmp_path).eval()
    assert back.config._attn_implementation_internal == implementation
    assert torch.equal(logits(back, call), dense)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_gradients_of_whole_rows_are_those_of_the_dense_model(name: str) -> None:
    gradients = []
    for method in (None, WHOLE, FEW):
        model, call = build(name), inputs(name, "right")
        if method is not None:
            apply_plan(model, everything(model, method))
        output = model(**call)
        scores = output.start_logits if "start_logits" in output else output.logits
        scores[real_positions(name, call)].square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    dense, whole, few = gradients
    assert whole.keys() == dense.keys() == few.keys()
    for key in dense:
        torch.testing.assert_close(whole[key], dense[key], rtol=1e-3, atol=1e-4 * float(dense[key].abs().max()) + 1e-6)
        assert torch.isfinite(few[key]).all()


def test_an_encoder_and_decoder_that_were_joined() -> None:
    def bert(**fields: Any) -> transformers.BertConfig:
        return transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, **fields
        )

    torch.manual_seed(0)
    model = transformers.EncoderDecoderModel(
        encoder=transformers.BertModel(bert()),
        decoder=transformers.BertLMHeadModel(bert(is_decoder=True, add_cross_attention=True)),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :6]}
    dense, before = logits(model, call), state(model)
    apply_plan(model, everything(model, WHOLE))
    assert len(current_patch(model).attention) == 3
    close(logits(model, call), dense)
    assert all(patch.calls == 1 for patch in current_patch(model).module_patches)
    remove_patch(model)
    apply_plan(model, everything(model, TopK(k=1)))
    assert far(logits(model, call), dense)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


# Counting, pausing


def test_metering_counts_what_the_closed_form_says() -> None:
    model, call = patched("llama", FEW), inputs("llama", "left")
    patch = current_patch(model)
    with patch.metered(Meter()) as meter:
        logits(model, call)
    logits(model, call)
    assert list(meter.modules) == [m.name for m in attention_modules(model)]
    for counted in meter.modules.values():
        assert counted.rows == 4 * (12 + 8)
        assert counted.visible == 4 * (12 * 13 // 2 + 8 * 9 // 2)
        assert counted.kept == 4 * ((1 + 2 + 3 * 10) + (1 + 2 + 3 * 6))
        assert counted.long_rows == 4 * (9 + 5)
    assert meter.total().rows == 2 * 4 * (12 + 8)


def test_metering_a_generation_counts_the_v_rows_of_every_step() -> None:
    model, call = patched("llama", FEW), inputs("llama")
    with current_patch(model).metered(Meter()) as meter:
        model.generate(**call, do_sample=False, min_new_tokens=4, max_new_tokens=4, pad_token_id=0)
    for counted in meter.modules.values():
        # Two sequences, two KV heads; three steps after the prefill.
        assert counted.v_rows == 2 * 2 * (13 + 14 + 15)
        assert 2 * 2 * 3 * 3 <= counted.v_rows_kept <= 2 * 2 * 2 * 3 * 3


def test_pausing_is_dense_and_ends_even_after_an_error() -> None:
    model, call = build("llama"), inputs("llama")
    dense = logits(model, call)
    patch = apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with patch.paused():
        assert not patch.active
        assert torch.equal(logits(model, call), dense)
    assert patch.active
    assert torch.equal(logits(model, call), sparse)
    with pytest.raises(KeyError), patch.paused():
        raise KeyError
    assert torch.equal(logits(model, call), sparse)


# Refusals change nothing


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


def test_calls_are_counted_by_the_way_they_took() -> None:
    """Two layers with attention and a feed-forward layer each; double precision is nothing for a native kernel."""
    model, call = build("bert").double(), inputs("bert")
    with pytest.raises(UsageError, match="not patched"):
        call_paths(model)
    plan: dict[str, Method] = {**everything(model, FEW)}
    plan |= {target.name: TopKFeedForward(k=3) for target in feed_forward_modules(model)}
    patch = apply_plan(model, plan)
    for _ in range(3):
        logits(model, call)
    reason = "torch: no native library" if native() is None else "torch: stored as float64"
    found = call_paths(model)
    assert (found[reason], sum(found.values())) == (12 if native() is not None else 6, 12)
    assert found == patch.paths
    remove_patch(model)


def test_paths_as_text() -> None:
    paths = {"torch: head size 20": 64, "native": 1920, "torch: dropout": 64}
    assert describe_paths(paths) == "1,920 native; 64 torch: dropout; 64 torch: head size 20"


def test_the_record_lives_on_the_model() -> None:
    model = build("bert")
    patch = apply_plan(model, everything(model, FEW))
    assert isinstance(patch, Patch)
    assert getattr(model, MODEL_ATTRIBUTE) is patch
    assert [p.name for p in patch.module_patches] == [m.name for m in attention_modules(model)]
    remove_patch(model)
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert not any(hasattr(module, PATCH_ATTRIBUTE) for module in model.modules())
