"""Numbers that are not finite: at which positions they matter, and what they are blamed on."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.errors import NotPatchableError, SparsifyError
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.outputs import features, finite_outputs, require_finite
from hf_sparsify.patcher.proof import prove
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

MASK = torch.tensor([[1, 1, 0]])


@pytest.fixture
def llama() -> PreTrainedModel:
    model = tiny_models.build("llama")
    model.name_or_path = "some/llama"
    return model


def spoil(model: PreTrainedModel, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value


def blame(model: PreTrainedModel, **options: Any) -> str:
    with pytest.raises(SparsifyError) as caught, finite_outputs(model, **options):
        model(input_ids=torch.arange(8)[None])
    return str(caught.value)


def test_the_first_broken_parameter_is_named(llama: PreTrainedModel) -> None:
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.v_proj.weight"):
        spoil(llama, name, torch.nan)
    told = blame(llama)
    assert "some/llama has NaN or infinities in model.layers.0.self_attn.v_proj.weight: fetch or save" in told


def test_a_weight_that_only_float16_cannot_hold(llama: PreTrainedModel) -> None:
    spoil(llama, "model.layers.0.self_attn.v_proj.weight", 1e5)
    assert "v_proj.weight once it is float16: use --dtype float32 or bfloat16" in blame(llama.half())


def test_an_overflow_of_finite_weights(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.mlp.up_proj.weight.mul_(3e3)
            layer.mlp.down_proj.weight.mul_(3e3)
    assert "finite weights and overflows in float16: use --dtype float32 or bfloat16" in blame(llama.half())


def test_a_float32_model_that_overflows_is_told_no_dtype(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.lm_head.weight.mul_(1e38)
    told = blame(llama)
    assert "overflows in float32: check that its config.json" in told
    assert "--dtype" not in told


def test_a_patched_model_whose_dense_self_is_finite(llama: PreTrainedModel) -> None:
    spoil(llama, "model.layers.0.self_attn.v_proj.weight", torch.nan)
    assert "the patched model gives numbers that are not finite" in blame(llama, patched=True)


def test_outputs_are_checked_inside_the_block_alone(llama: PreTrainedModel) -> None:
    with finite_outputs(llama):
        llama(input_ids=torch.arange(8)[None])
    spoil(llama, "lm_head.weight", torch.nan)
    llama(input_ids=torch.arange(8)[None])
    assert not llama._forward_hooks


@pytest.mark.parametrize(
    ("value", "place", "fine"), [(torch.nan, 2, True), (torch.nan, 1, False), (torch.inf, 0, False)]
)
def test_padding_may_be_anything(value: float, place: int, fine: bool, llama: PreTrainedModel) -> None:
    states = torch.zeros(1, 3, 4)
    states[0, place, 0] = value
    output, inputs = BaseModelOutput(last_hidden_state=states), {"attention_mask": MASK}
    if fine:
        require_finite(llama, output, inputs)
        return
    with pytest.raises(SparsifyError):
        require_finite(llama, output, inputs)


def test_the_mask_of_an_encoder_says_nothing_of_its_decoder(llama: PreTrainedModel) -> None:
    output = CausalLMOutput(logits=torch.full((1, 3, 4), torch.nan))
    with pytest.raises(SparsifyError):
        require_finite(llama, output, {"attention_mask": 0 * MASK, "decoder_input_ids": MASK})


def test_a_token_may_be_ruled_out(llama: PreTrainedModel) -> None:
    require_finite(llama, CausalLMOutput(logits=torch.full((1, 3, 4), -torch.inf)), {})


def test_an_output_of_an_unknown_kind_is_let_through_and_has_no_features(llama: PreTrainedModel) -> None:
    require_finite(llama, torch.full((1,), torch.nan), {})
    with pytest.raises(NotPatchableError, match="neither logits nor hidden states"):
        features(torch.ones(1))


def test_the_proof_blames_the_dense_model_and_not_the_patch(llama: PreTrainedModel) -> None:
    spoil(llama, "model.layers.0.self_attn.v_proj.weight", torch.nan)
    with pytest.raises(SparsifyError, match=r"the dense model itself .* some/llama has NaN"):
        prove(llama, {"model.layers.0.self_attn": TopK(k=4)}, None, "causal-lm")
    apply_plan(llama, {"model.layers.0.self_attn": TopK(k=4)})  # it was left dense
