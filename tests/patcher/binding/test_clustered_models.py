"""Clustered attention in tiny models: dense where it has to be, refused where it cannot be."""

from __future__ import annotations

from typing import Any

import hf_sparsify
import pytest
import torch
import transformers
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE, ModulePatch, attention_forward
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patchable import check_module
from hf_sparsify.patcher.binding.patching import current_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, ClusteredPlain
from patched_models import close, far, state
from tiny_models import VOCABULARY, attention_inputs, build, inputs, logits
from torch import Tensor, nn
from transformers import PreTrainedModel

LENGTH = 12
TEXT = ("bert", "roberta", "albert", "t5 encoder")
IMAGES = ("vit", "clip")
FEW: list[AttentionMethod] = [ClusteredPlain(clusters=3), Clustered(clusters=2, k=2)]

_WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_TEXT: dict[str, Any] = {**_WIDTHS, "vocab_size": VOCABULARY, "pad_token_id": 0}


def encoder(name: str) -> PreTrainedModel:
    """A random encoder in eval mode, in which attention is far from uniform."""
    torch.manual_seed(0)
    if name == "t5 encoder":
        config = build("t5").config
        model: PreTrainedModel = transformers.T5EncoderModel(config)
    elif name == "bert":
        model = transformers.BertModel(transformers.BertConfig(**_TEXT))
    elif name == "roberta":
        model = transformers.RobertaModel(transformers.RobertaConfig(**_TEXT))
    elif name == "albert":
        model = transformers.AlbertModel(transformers.AlbertConfig(**_TEXT, embedding_size=16))
    elif name == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**_WIDTHS, image_size=16, patch_size=4))
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_WIDTHS, image_size=16, patch_size=4))
    # T5 does not divide its scores by the square root of the head width.
    width = 0.16 if name == "t5 encoder" else 0.3
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) * width)
    return model.eval()


def call_of(name: str, padded: bool = False) -> dict[str, Tensor]:
    """Two texts, the second padded by 4 if asked, or two images."""
    if name in IMAGES:
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))}
    return inputs("bert", "right" if padded else "none", length=LENGTH)


@torch.no_grad()
def states(model: PreTrainedModel, call: dict[str, Tensor]) -> Tensor:
    return model(**call).last_hidden_state


@pytest.mark.parametrize("name", [*TEXT, *IMAGES])
def test_whole_clusters_or_keys_are_dense_few_are_not_and_unpatching_is_exact(name: str) -> None:
    """Invariants 1, 2 and 16, with the position bias of T5 and without any mask in vision models."""
    model = encoder(name)
    before = state(model)
    for padded in (False, True) if name in TEXT else (False,):
        call = call_of(name, padded)
        real = call.get("attention_mask", torch.ones(2, 17 if name in IMAGES else LENGTH)).bool()
        dense = states(model, call)
        for method in (ClusteredPlain(clusters=17), Clustered(clusters=2, k=17), Clustered(clusters=1, k=64)):
            with hf_sparsify.patch(model, method):
                close(states(model, call)[real], dense[real])
                assert all(patch.calls > 0 for patch in current_patch(model).attention_patches)
        for method in FEW:
            hf_sparsify.patch(model, method)
            assert far(states(model, call)[real], dense[real])
            assert torch.isfinite(states(model, call)).all()
            hf_sparsify.unpatch(model)
        assert state(model) == before
        assert torch.equal(states(model, call), dense)


@pytest.mark.parametrize("method", FEW, ids=str)
@pytest.mark.parametrize("name", TEXT)
def test_a_text_alone_and_in_a_padded_batch(name: str, method: AttentionMethod) -> None:
    """Invariants 12 and 13: neither the padding nor what stands in it matters."""
    model, call = encoder(name), call_of(name, padded=True)
    real = call["attention_mask"].bool()
    hf_sparsify.patch(model, method)
    together = states(model, call)
    for index in range(2):
        alone = {"input_ids": call["input_ids"][index : index + 1, real[index]]}
        close(together[index, real[index]], states(model, alone)[0])
    if name != "roberta":  # counts positions by what is padding
        junk = {**call, "input_ids": call["input_ids"].masked_fill(~real, 50)}
        assert torch.equal(states(model, junk)[real], together[real])


@pytest.mark.parametrize("method", FEW, ids=str)
def test_a_text_padded_on_the_left_or_with_holes(method: AttentionMethod) -> None:
    """Invariant 14: T5 has relative positions, so that a text means the same wherever it stands."""
    model = encoder("t5 encoder")
    ids = call_of("t5 encoder")["input_ids"]
    left = torch.ones(2, LENGTH, dtype=torch.int64)
    left[1, :4] = 0
    holes = left.clone()
    holes[0, 5] = 0
    hf_sparsify.patch(model, method)
    expected = states(model, {"input_ids": ids[1:, 4:]})[0]
    for mask in (left, holes):
        close(states(model, {"input_ids": ids, "attention_mask": mask})[1, 4:], expected)


@pytest.mark.parametrize("name", ["bert", "t5 encoder"])
def test_a_seed_is_deterministic_and_dropout_off(name: str) -> None:
    """Invariant 19, in a whole model."""
    model, call = encoder(name), call_of(name, padded=True)
    with hf_sparsify.patch(model, Clustered(clusters=3, k=2)):
        first = states(model, call)
        before = torch.get_rng_state()
        assert torch.equal(states(model, call), first)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["bert", "t5 encoder"])
def test_gradients_of_a_padded_batch_are_finite(name: str) -> None:
    """Invariant 21; and where every key is refined they are those of the dense model."""
    gradients = []
    for method in (None, Clustered(clusters=2, k=LENGTH), *FEW):
        model, call = encoder(name), call_of(name, padded=True)
        if method is not None:
            hf_sparsify.patch(model, method)
        model(**call).last_hidden_state[call["attention_mask"].bool()].square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        assert all(torch.isfinite(gradient).all() for gradient in gradients[-1].values())
    dense, whole = gradients[:2]
    assert all(dense.keys() == other.keys() for other in gradients)
    for key, expected in dense.items():
        torch.testing.assert_close(whole[key], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    """Invariant 20: with every key refined a model is as near to float64 as its dense self."""
    model, call = encoder("bert").double(), call_of("bert", padded=True)
    real = call["attention_mask"].bool()
    exact = states(model, call)[real]
    model = model.to(dtype)
    dense_error = (states(model, call)[real] - exact).abs().mean()
    with hf_sparsify.patch(model, Clustered(clusters=2, k=LENGTH)):
        out = states(model, call)
    assert out.dtype == dtype
    assert float((out[real] - exact).abs().mean()) < 1.5 * float(dense_error) + 1e-12


def test_metering_counts_the_valid_tokens() -> None:
    model, call = encoder("bert"), call_of("bert", padded=True)
    patch = hf_sparsify.patch(model, Clustered(clusters=3, k=2, iterations=1))
    with patch.metered(Meter()) as meter:
        states(model, call)
    assert len(meter.modules) == 2
    for counted in meter.modules.values():
        assert counted.cluster_dense_scores == 4 * (12**2 + 8**2)
        assert counted.cluster_scores == 4 * (12 + 8) * (0 + 2) + 4 * 3 * (12 + 8)
        assert counted.cluster_distances == 4 * (12 + 8) * 3 * 2


# Refusals


@pytest.mark.parametrize("method", FEW, ids=str)
@pytest.mark.parametrize(
    ("name", "refused", "options"),
    [
        ("llama", "model.layers.0.self_attn is causal self-attention", {}),
        ("gpt2", "transformer.h.1.attn is causal self-attention", {"layers": "1"}),
        ("t5", "decoder.block.0.layer.0.SelfAttention is causal", {"stack": "decoder", "kind": "self"}),
        ("t5", "decoder.block.0.layer.1.EncDecAttention is cross-attention", {"kind": "cross"}),
        ("bart", "model.decoder.layers.0.encoder_attn is cross-attention", {"kind": "cross"}),
        ("bart", "model.decoder.layers.0.self_attn is causal", {}),
    ],
)
def test_causal_and_cross_attention_are_refused_and_nothing_changes(
    name: str, refused: str, options: dict[str, Any], method: AttentionMethod
) -> None:
    """Invariants 17 and 18: refused by the name of the module, before anything runs."""
    model, call = build(name), inputs(name)
    dense, before = logits(model, call), state(model)
    with pytest.raises(NotPatchableError, match=refused.replace(".", r"\.")):
        hf_sparsify.patch(model, method, **options)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("method", FEW, ids=str)
@pytest.mark.parametrize("name", ["llama", "t5", "bart", "bert"])
def test_check_module_lets_bidirectional_self_attention_through_alone(name: str, method: AttentionMethod) -> None:
    """Invariants 17 and 18."""
    for target in attention_modules(build(name)):
        if target.kind == "self" and target.stack == "encoder":
            check_module(target, method)
        else:
            with pytest.raises(NotPatchableError, match=f"{target.name} is".replace(".", r"\.")):
                check_module(target, method)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_alone(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    dense = logits(model, call)
    with hf_sparsify.patch(model, Clustered(clusters=2, k=LENGTH), stack="encoder"):
        close(logits(model, call), dense)
    for method in FEW:
        with hf_sparsify.patch(model, method, stack="encoder"):
            assert far(logits(model, call), dense)
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("method", FEW, ids=str)
def test_a_mask_whose_rows_differ_is_refused_by_the_name_of_the_module(method: AttentionMethod) -> None:
    """Invariants 17 and 18: what only shows while the model runs."""
    model, call = encoder("bert"), call_of("bert")
    causal = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    with (
        hf_sparsify.patch(model, method),
        pytest.raises(NotPatchableError, match=r"^encoder\.layer\.0\.attention\.self: .* see the same keys"),
    ):
        states(model, {**call, "attention_mask": causal})


@pytest.mark.parametrize("method", FEW, ids=str)
def test_a_causal_call_without_a_mask_is_refused_by_the_name_of_the_module(method: AttentionMethod) -> None:
    """Invariants 17 and 18: is_causal is not passed over."""
    module, call = nn.Module(), attention_inputs("all", groups=4)
    setattr(module, PATCH_ATTRIBUTE, ModulePatch("layers.3.attn", "self", method))
    attention_forward(module, call.query, call.key, call.value, None)
    with pytest.raises(NotPatchableError, match=r"^layers\.3\.attn: .* see the same keys"):
        attention_forward(module, call.query, call.key, call.value, None, is_causal=True)
