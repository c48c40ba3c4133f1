"""A patch while it is there: gradients, counting, pausing, and its record on the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE
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
from hf_sparsify.patcher.methods import Method, TopK, TopKFeedForward
from patched_models import (
    FEW,
    WHOLE,
    close,
    everything,
    far,
    patched,
    state,
)
from tiny_models import build, inputs, logits, real_positions


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
