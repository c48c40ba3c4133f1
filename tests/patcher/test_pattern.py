"""Attention weights of one input: the model's own, in both arms, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_language_models
import torch
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.methods import Clustered, Method, TopK, TopTheta
from hf_sparsify.patcher.pattern import Pattern, attention_patterns
from torch import Tensor

K = 4


def patterns(model: Any, method: Method, length: int = 12) -> dict[str, Pattern]:
    names = [module.name for module in attention_modules(model)]
    return attention_patterns(model, dict.fromkeys(names, method), {}, inputs(model, length), names)


def inputs(model: Any, length: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {"input_ids": torch.randint(4, 50, (1, length), generator=generator)}
    if model.config.is_encoder_decoder:
        made["decoder_input_ids"] = torch.randint(4, 50, (1, length - 2), generator=generator)
    return made


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_dense_weights_are_those_of_eager_attention(family: str) -> None:
    model = tiny_language_models.make(family)
    found = patterns(model, TopK(k=K))
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(**inputs(model), output_attentions=True).attentions
    assert len(found) == len(expected)
    for pattern, weights in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(pattern.dense.weights, weights[0], rtol=1e-5, atol=1e-6)


def test_patched_weights_are_the_softmax_over_the_k_highest() -> None:
    model = tiny_language_models.make("llama")
    first = next(iter(patterns(model, TopK(k=K)).values()))  # in the first layer both models have the same scores
    dense, patched = first.dense.weights, first.patched
    highest = dense.topk(K, -1).indices
    kept = torch.zeros_like(dense).scatter(-1, highest, 1).bool() & first.dense.visible
    assert torch.equal(patched.kept, kept)
    torch.testing.assert_close(patched.weights, torch.where(kept, dense, 0) / (dense * kept).sum(-1, keepdim=True))
    assert torch.equal(patched.visible[0], torch.ones(12, 12, dtype=torch.bool).tril())


@pytest.mark.parametrize("compensation", ["sdc", "sdc+vmc"])
def test_compensated_weights_are_the_dense_ones_of_kept_keys(compensation: str) -> None:
    model = tiny_language_models.make("llama")
    first = next(iter(patterns(model, TopK(k=K, compensation=compensation)).values()))
    torch.testing.assert_close(first.patched.weights, torch.where(first.patched.kept, first.dense.weights, 0))


def test_protected_keys_are_marked_and_kept() -> None:
    model = tiny_language_models.make("llama")
    first = next(iter(patterns(model, TopTheta(k=K, protect_first=1, protect_recent=1)).values()))
    expected = torch.eye(12, dtype=torch.bool)
    expected[:, 0] = True
    assert torch.equal(first.patched.protected[2], expected)
    assert bool(first.patched.kept[first.patched.protected].all())
    assert not bool(first.dense.protected.any())


def test_an_encoder_decoder_model_has_all_three_kinds() -> None:
    found = patterns(tiny_language_models.make("t5"), TopK(k=K))
    shapes = {name: tuple(pattern.dense.weights.shape) for name, pattern in found.items()}
    assert shapes["encoder.block.1.layer.0.SelfAttention"] == (4, 12, 12)
    assert shapes["decoder.block.1.layer.0.SelfAttention"] == (4, 10, 10)
    assert shapes["decoder.block.1.layer.1.EncDecAttention"] == (4, 10, 12)


def test_clustered_rows_are_shared_and_sum_to_one() -> None:
    model = tiny_language_models.make("bert")
    first = next(iter(patterns(model, Clustered(clusters=3, k=12)).values()))  # all keys refined: dense
    torch.testing.assert_close(first.patched.weights, first.dense.weights, rtol=1e-4, atol=1e-5)
    second = next(iter(patterns(model, Clustered(clusters=3, k=1)).values()))
    torch.testing.assert_close(second.patched.weights.sum(-1), torch.ones(4, 12))
    assert min(second.overlaps()) < 0.999
    assert min(first.overlaps()) > 0.999


@pytest.mark.parametrize("family", ["gpt-neo", "mpnet"])
def test_intercepted_modules_have_patterns_too(family: str) -> None:
    found = patterns(tiny_language_models.make(family), TopK(k=K))
    assert found
    for pattern in found.values():
        assert int(pattern.patched.kept.sum(-1).max()) == K
        torch.testing.assert_close(pattern.patched.weights.sum(-1), torch.ones(pattern.patched.weights.shape[:2]))


def test_shares_and_overlaps_are_of_each_head() -> None:
    model = tiny_language_models.make("llama")
    first = next(iter(patterns(model, TopK(k=K)).values()))
    visible = 12 * 13 // 2
    kept = sum(min(length, K) for length in range(1, 13))
    assert first.kept_shares() == pytest.approx([kept / visible] * 4)
    mass = (first.dense.weights * first.patched.kept).sum(-1).mean(-1)
    assert first.overlaps() == pytest.approx(mass.tolist(), rel=1e-5)


def test_long_rows_in_several_chunks_and_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_models.make("llama")
    with torch.inference_mode():
        before = model(**inputs(model)).logits
    whole = patterns(model, TopK(k=K))
    monkeypatch.setattr("hf_sparsify.patcher.methods.rows.CHUNK_ELEMENTS", 4 * 12 * 5)  # rows 0-4, 5-9, 10-11
    parts = patterns(model, TopK(k=K))
    for name, pattern in whole.items():
        torch.testing.assert_close(parts[name].patched.weights, pattern.patched.weights)
        assert torch.equal(parts[name].patched.kept, pattern.patched.kept)
    with torch.inference_mode():
        assert torch.equal(model(**inputs(model)).logits, before)
