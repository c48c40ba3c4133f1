"""A sequence gives the same rows alone, in a padded batch, in chunks, from a cache, and in generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import (
    FEW,
    GENERATORS,
    ONLY_RIGHT,
    WHOLE,
    close,
    everything,
    far,
    patched,
)
from tiny_models import DECODERS, ENCODER_DECODERS, FAMILIES, build, inputs, logits, real_positions
from torch import Tensor
from transformers import AttentionMaskInterface, DynamicCache, PreTrainedModel

Sparse = TopK | TopTheta
COMPENSATED: tuple[Sparse, ...] = (
    TopK(k=3, compensation="sdc"),
    TopK(k=3, compensation="sdc+vmc", v_mean="dropped"),
    TopTheta(k=3, compensation="sdc+vmc"),
    TopTheta(k=3, compensation="sdc+vmc", placement="max-relative", denominator="exp-threshold"),
    TopTheta(k=3, compensation="sdc+vmc", placement="pre-softmax", denominator="offline"),
    TopK(k=3, compensation="sdc+vmc", min_length=6),
    TopTheta(k=3, compensation="sdc+vmc", min_length=6),
)


def compensated_id(method: Sparse) -> str:
    return f"{method.name}: {method.describe()}"


def with_tables(name: str, method: Sparse) -> PreTrainedModel:
    """Patched, with thresholds for rows of 4 to 9 keys that keep some of them: longer rows have none."""
    model = build(name)
    tables = None
    if isinstance(method, TopTheta):
        theta = {"post-softmax": -2.2, "max-relative": -1.5, "pre-softmax": 0.4}[method.placement]
        table = ModuleThresholds(
            torch.tensor([4.0, 9.0]),
            torch.tensor([[theta, theta + 0.2]] * 4),
            4,
            9,
            method.placement,
            dropped=torch.full((4, 2), 0.3),
        )
        tables = {target.name: table for target in attention_modules(model)}
    apply_plan(model, everything(model, method), tables)
    return model


# A sequence is the same however it is fed


@pytest.mark.parametrize("method", [FEW, *COMPENSATED], ids=compensated_id)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sequence_alone_and_in_a_padded_batch(name: str, padding: str, method: Sparse) -> None:
    if padding == "left" and name in ONLY_RIGHT:
        padding = "right"
    model, call = with_tables(name, method), inputs(name, padding)
    together = logits(model, call)[1]
    real = call["attention_mask"][1].bool()
    alone = {"input_ids": call["input_ids"][1:, real]}
    if name in ENCODER_DECODERS:
        alone["decoder_input_ids"] = call["decoder_input_ids"][1:]
        close(together, logits(model, alone)[0])
    else:
        close(together[real], logits(model, alone)[0])


@torch.no_grad()
def in_steps(model: PreTrainedModel, name: str, call: dict[str, Tensor], sizes: list[int]) -> Tensor:
    """Logits of a forward call that is fed through a cache, so many tokens at a time."""
    fed = "decoder_input_ids" if name in ENCODER_DECODERS else "input_ids"
    out, start, cache = [], 0, None if name in ENCODER_DECODERS else DynamicCache(config=model.config)
    for size in sizes:
        stop = start + size
        step = {**call, fed: call[fed][:, start:stop]}
        if name in DECODERS and "attention_mask" in call:
            step["attention_mask"] = call["attention_mask"][:, :stop]
            step["position_ids"] = call["position_ids"][:, start:stop]
        result = model(**step, past_key_values=cache, use_cache=True)
        out.append(result.logits)
        start, cache = stop, result.past_key_values
    assert start == call[fed].shape[1]
    return torch.cat(out, 1)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize(
    "method",
    [
        FEW,
        TopK(k=3, protect_first=1, protect_recent=1),
        TopTheta(k=3),
        TopTheta(k=3, placement="pre-softmax"),
        *COMPENSATED,
    ],
    ids=compensated_id,
)
@pytest.mark.parametrize("name", GENERATORS)
def test_a_cache_filled_in_chunks_or_token_by_token(name: str, method: Sparse, padding: str) -> None:
    call = inputs(name, padding)
    if method.protect_recent:
        model = build(name)
        apply_plan(model, {m.name: method if m.causal else FEW for m in attention_modules(model)})
    else:
        model = with_tables(name, method)
    real = real_positions(name, call)
    whole = logits(model, call)
    length = whole.shape[1]
    for sizes in ([1] * length, [3, length - 3], [length - 1, 1], [2, 1, length - 3]):
        close(in_steps(model, name, call, sizes)[real], whole[real])


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", GENERATION)
@pytest.mark.parametrize("name", GENERATORS)
def test_generating_with_whole_rows_is_dense(name: str, mode: str) -> None:
    model = build(name)
    for padding in ("none", "left"):
        call = inputs(name, padding)
        call.pop("position_ids", None)
        call.pop("decoder_input_ids", None)
        options = {
            **GENERATION[mode],
            "do_sample": False,
            "min_new_tokens": 7,
            "max_new_tokens": 7,
            "pad_token_id": 0,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        dense = model.generate(**call, **options)
        apply_plan(model, everything(model, WHOLE))
        whole = model.generate(**call, **options)
        assert torch.equal(whole.sequences, dense.sequences)
        for ours, theirs in zip(whole.logits, dense.logits, strict=True):
            close(ours, theirs)
        remove_patch(model)
        apply_plan(model, everything(model, TopK(k=2)))
        assert far(model.generate(**call, **options).logits[1], dense.logits[1])
        remove_patch(model)


@pytest.mark.parametrize("method", [FEW, *COMPENSATED[1:]], ids=compensated_id)
@pytest.mark.parametrize("name", GENERATORS)
def test_sparse_generation_does_not_depend_on_the_cache(name: str, method: Sparse) -> None:
    model = with_tables(name, method)
    call = inputs(name, "left")
    call.pop("position_ids", None)
    call.pop("decoder_input_ids", None)
    options = {
        "do_sample": False,
        "min_new_tokens": 6,
        "max_new_tokens": 6,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    runs = [model.generate(**call, **options, **GENERATION[mode]) for mode in ("no cache", "greedy", "static cache")]
    for run in runs[1:]:
        assert torch.equal(run.sequences, runs[0].sequences)
        for ours, theirs in zip(run.logits, runs[0].logits, strict=True):
            close(ours, theirs)


@pytest.mark.parametrize("method", [WHOLE, FEW, *COMPENSATED], ids=compensated_id)
def test_later_tokens_never_change_earlier_logits(method: Sparse) -> None:
    for name in DECODERS:
        model, call = with_tables(name, method), inputs(name)
        before = logits(model, call)
        call["input_ids"] = call["input_ids"].clone()
        call["input_ids"][:, 8:] = 5
        after = logits(model, call)
        assert torch.equal(after[:, :8], before[:, :8])
        assert far(after[:, 8:], before[:, 8:])


# The check that catches a missing mask builder


@pytest.mark.parametrize("name", FAMILIES)
def test_without_the_mask_builder_padding_would_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = "right" if name in ONLY_RIGHT else "left"
    model, call = build(name), inputs(name, padding)
    real = real_positions(name, call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call)[real], dense[real])
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    assert far(logits(model, call)[real], dense[real])


def test_without_the_mask_builder_a_chunk_is_refused_and_a_window_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = patched("mistral", WHOLE), inputs("mistral")
    whole = logits(model, call)
    close(in_steps(model, "mistral", call, [4, 8]), whole)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    assert far(logits(model, call), whole)
    with pytest.raises(NotPatchableError, match="without a mask"):
        in_steps(model, "mistral", call, [4, 8])
