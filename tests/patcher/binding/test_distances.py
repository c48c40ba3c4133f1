"""T5 and its kin hand on their position bias by distance while they are patched, and then are as they were."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import hf_sparsify
import pytest
import torch
import transformers
from hf_sparsify.patcher.binding import distances
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, TopK
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from live_storage import LiveStorage, TensorSizes
from patched_models import close, far, state
from tiny_models import build, inputs, logits
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.longt5 import modeling_longt5
from transformers.models.mt5 import modeling_mt5
from transformers.models.pix2struct import modeling_pix2struct
from transformers.models.pop2piano import modeling_pop2piano
from transformers.models.switch_transformers import modeling_switch_transformers
from transformers.models.t5 import modeling_t5
from transformers.models.udop import modeling_udop
from transformers.models.umt5 import modeling_umt5

WIDTHS: dict[str, Any] = {"d_model": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 40, "vocab_size": 64}
CLASSES: dict[type[nn.Module], type[transformers.PretrainedConfig]] = {
    modeling_t5.T5Attention: transformers.T5Config,
    modeling_mt5.MT5Attention: transformers.MT5Config,
    modeling_umt5.UMT5Attention: transformers.UMT5Config,
    modeling_switch_transformers.SwitchTransformersAttention: transformers.SwitchTransformersConfig,
    modeling_longt5.LongT5Attention: transformers.LongT5Config,
    modeling_pop2piano.Pop2PianoAttention: transformers.Pop2PianoConfig,
    modeling_udop.UdopAttention: transformers.UdopConfig,
    modeling_pix2struct.Pix2StructTextAttention: transformers.Pix2StructTextConfig,
}
TRAINED = "relative_attention_bias.weight"


def encoder(**fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**{**WIDTHS, **fields})).eval()
    with torch.no_grad():  # so that attention is far from uniform, and depends on distance
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0 if name.endswith((".q.weight", TRAINED)) else 1.0)
    return model


def tokens(length: int) -> dict[str, Tensor]:
    ids = torch.randint(2, 64, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, : length // 7], mask[1, -(length // 5) :] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def states(model: PreTrainedModel, call: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**call).last_hidden_state
    return found[call["attention_mask"].bool()]


def with_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on models are patched with the bias as their own code makes it."""
    monkeypatch.setattr(distances, "knows_distances", lambda module: False)
    monkeypatch.setattr("hf_sparsify.patcher.binding.patching.knows_distances", lambda module: False)


@pytest.mark.parametrize("past", [0, 5, torch.tensor(5)], ids=["no past", "past", "static cache"])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_by_distance_is_what_the_model_adds(cls: Any, is_decoder: bool, past: int | Tensor) -> None:
    torch.manual_seed(0)
    config = CLASSES[cls](**WIDTHS)
    config.is_decoder = is_decoder
    module = cls(config, has_relative_attention_bias=True, layer_idx=0)
    assert distances.knows_distances(module)
    for queries, keys in ((30, 30), (1, 300), (300, 305), (1, 1)):
        expected = module.compute_bias(queries, keys, past_seen_tokens=past)
        found = distances.bias_by_distance(module, queries, keys, past_seen_tokens=past)
        assert found.shape == (1, expected.shape[1], queries + keys - 1)
        assert torch.equal(DistanceBias(found, queries).whole(), expected)


def test_other_biases_are_left_alone() -> None:
    config = transformers.LongT5Config(**WIDTHS)
    assert not distances.knows_distances(modeling_longt5.LongT5LocalAttention(config, has_relative_attention_bias=True))
    assert not distances.knows_distances(build("bert"))


def test_unpatching_leaves_nothing() -> None:
    model, call = build("t5"), inputs("t5", "right")
    before, dense = state(model), logits(model, call)
    patch = hf_sparsify.patch(model, TopK(k=3))
    biased = [module for module in model.modules() if distances.METHOD in vars(module)]
    assert len(biased) == 2
    with patch.paused():
        assert not any(distances.METHOD in vars(module) for module in model.modules())
        assert torch.equal(logits(model, call), dense)
    assert [module for module in model.modules() if distances.METHOD in vars(module)] == biased
    hf_sparsify.unpatch(model)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("method", [TopK(k=9), TopK(k=9, compensation="sdc"), Clustered(clusters=8, k=9)], ids=str)
def test_a_thousand_tokens_are_those_of_the_ordinary_bias(
    method: AttentionMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = encoder(num_layers=2), tokens(1023)
    with hf_sparsify.patch(model, method) as patch:
        out = states(model, call)
        assert set(patch.paths) <= {"native", "torch: a position bias", "torch: no native library"}
    with_matrices(monkeypatch)
    with hf_sparsify.patch(model, method):
        expected = states(model, call)
    # Of two keys that score the same within rounding either may be kept, and a query may go to either of two clusters.
    assert float(((out - expected).abs().amax(-1) > 1e-3).float().mean()) < 0.003
    assert far(out, states(model, call))


def test_modules_left_dense_get_the_bias_whole_or_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = encoder(num_layers=3), tokens(97)
    dense, last = states(model, call), attention_modules(model)[-1].name
    for most in (distances.WHOLE_ELEMENTS, 0):
        monkeypatch.setattr(distances, "WHOLE_ELEMENTS", most)
        for method in (TopK(k=97), TopK(k=3, min_length=98)):
            with hf_sparsify.patch(model, {last: method}):
                close(states(model, call), dense)


def test_a_bias_made_whole_for_dense_modules_is_made_once_and_goes_with_its_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Tensor]] = []
    whole = DistanceBias.whole

    def remembered(bias: DistanceBias) -> Tensor:
        out = whole(bias)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(DistanceBias, "whole", remembered)
    model, call = encoder(num_layers=3), tokens(20)
    with hf_sparsify.patch(model, {attention_modules(model)[-1].name: TopK(k=3)}):
        states(model, call)
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpoints", "reentrant checkpoints"])
@pytest.mark.parametrize("dense_layer", [False, True])
def test_gradients_are_those_of_the_eager_model(checkpointing: bool | None, dense_layer: bool) -> None:
    """That of the bias itself included, which only the first layer of a stack has."""
    torch.manual_seed(0)
    config = transformers.T5Config(**{**WIDTHS, "num_layers": 2}, dropout_rate=0.0, decoder_start_token_id=0)
    model: Any = transformers.T5ForConditionalGeneration(config).train()
    model.set_attn_implementation("eager")
    call, labels = tokens(30), tokens(11)["input_ids"]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**call, labels=labels, use_cache=False).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients()
    names = [target.name for target in attention_modules(model)][int(dense_layer) :]
    if checkpointing is not None:
        older = model.gradient_checkpointing_enable  # its name in older transformers
        getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": checkpointing})
    with hf_sparsify.patch(model, {name: TopK(k=64) for name in names}):
        found = gradients()
    assert sum(name.endswith(TRAINED) for name in found) == 2
    for name, gradient in found.items():
        assert float((gradient - expected[name]).abs().max()) < 1e-5, name
        assert float(gradient.abs().max()) > 1e-4, name


@pytest.mark.parametrize("dense_layers", [0, 1])
@pytest.mark.parametrize("method", [TopK(k=9), Clustered(clusters=8, k=9)], ids=str)
def test_memory_of_an_encoder_is_linear_in_length(
    method: AttentionMethod, dense_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside chunks, whose size does not depend on the length."""
    monkeypatch.setattr("hf_sparsify.patcher.methods.rows.CHUNK_ELEMENTS", 2**16)
    monkeypatch.setattr(distances, "WHOLE_ELEMENTS", 2**18)
    model, peaks = encoder(num_layers=2), {}
    plan = {target.name: method for target in attention_modules(model)[dense_layers:]}
    for length in (700, 1400):
        with hf_sparsify.patch(model, plan), TensorSizes() as sizes, LiveStorage() as storage:
            states(model, tokens(length))
        peaks[length] = storage.peak
        assert sizes.largest < length * length / 2
    assert peaks[1400] < 2.2 * peaks[700]
    with TensorSizes() as sizes:
        states(model, tokens(700))
    assert sizes.largest >= 2 * 700 * 700  # what is not made above


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_cross_attention_makes_no_zeros(name: str) -> None:
    cls = {"t5": transformers.T5ForConditionalGeneration, "mt5": transformers.MT5ForConditionalGeneration}[name]
    torch.manual_seed(0)
    model: Any = cls(cls.config_class(**WIDTHS, decoder_start_token_id=0)).eval()
    call = {**tokens(800), "decoder_input_ids": tokens(400)["input_ids"]}
    dense = logits(model, call)
    # With the native kernel, or scores of all rows are made in chunks.
    with hf_sparsify.patch(model, TopK(k=800)) as patch, TensorSizes() as sizes:
        out = logits(model, call)
    close(out, dense)
    if set(patch.paths) == {"native"}:
        assert sizes.largest < 400 * 800


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    """The first layer is left dense: the graph makes the bias whole for it, and by distance for the second."""
    model, call = encoder(num_layers=2), tokens(20)
    dense = states(model, call)
    with hf_sparsify.patch(model, {attention_modules(model)[1].name: TopK(k=3)}):
        expected = states(model, call)
        close(states(torch.compile(model, backend="eager", fullgraph=True), call), expected)
    torch._dynamo.reset()
    assert far(expected, dense)
