"""What a caller may get wrong in Python: said at once, and nothing is changed."""

from __future__ import annotations

from typing import Any

import hf_sparsify
import pytest
import tiny_models
import torch
import transformers
from hf_sparsify import TopK, TopKFeedForward
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, current_patch


@pytest.mark.parametrize(
    "method", ["top-k", TopK, 64, {"model.layers.0.self_attn": "top-k"}, {"model.layers.0.self_attn": TopK}]
)
def test_what_is_no_method(method: Any) -> None:
    model = tiny_models.build("llama")
    with pytest.raises(UsageError, match="is no method: give an object such as"):
        hf_sparsify.patch(model, method)
    assert not hasattr(model, MODEL_ATTRIBUTE)


def test_a_single_layer_is_a_selection() -> None:
    model = tiny_models.build("llama")
    with hf_sparsify.patch(model, TopK(k=2), layers=1) as patch:
        assert [module.name for module in patch.module_patches] == ["model.layers.1.self_attn"]


def test_kind_says_nothing_of_feed_forward_layers() -> None:
    with pytest.raises(UsageError, match="kind goes with an attention method"):
        hf_sparsify.patch(tiny_models.build("t5"), None, TopKFeedForward(k=2), kind="cross")


def test_shared_feed_forward_layers_are_patched_once() -> None:
    model = tiny_models.build("t5")
    layer = model.encoder.block[0].layer[1].DenseReluDense.wo
    hf_sparsify.patch(model.encoder, None, TopKFeedForward(k=2))
    with pytest.raises(UsageError, match="feed-forward layers of this model are already patched"):
        hf_sparsify.patch(model, None, TopKFeedForward(k=2))
    hf_sparsify.unpatch(model.encoder)
    assert "forward" not in vars(layer)
    with hf_sparsify.patch(model, None, TopKFeedForward(k=2)):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)


def test_calibrating_on_rows_that_are_all_short_leaves_the_patch_as_it_was() -> None:
    model = tiny_models.build("llama")
    hf_sparsify.patch(model, TopK(k=64))
    with pytest.raises(DataError, match="no row of the 1 samples sees more keys than its k"):
        hf_sparsify.calibrate(model, [{"input_ids": torch.arange(20).unsqueeze(0)}])
    assert {module.method for module in current_patch(model).module_patches} == {TopK(k=64)}


def test_a_language_model_outside_the_interface_is_a_decoder() -> None:
    config = transformers.FalconConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.FalconForCausalLM(config)
    assert [layer.stack for layer in feed_forward_modules(model)] == ["decoder"]


def test_a_patch_is_short_to_look_at() -> None:
    model = tiny_models.build("t5")
    with hf_sparsify.patch(model, TopK(k=2), TopKFeedForward(k=2)) as patch:
        assert len(repr(patch)) < 100
        assert len(repr(patch.feed_forward[0])) < 400
