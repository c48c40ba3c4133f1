"""Models whose linear layers a library has quantised: selection works on activations, whatever holds the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_sparsify
import pytest
import torch
import transformers
from hf_sparsify.patcher.kernels.weight_rows import copies
from hf_sparsify.patcher.methods import TopK, TopKFeedForward
from patched_models import close, far, state
from tiny_models import inputs, logits

FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
EIGHT_BIT = {"load_in_8bit": True}


@pytest.mark.parametrize("options", [FOUR_BIT, EIGHT_BIT], ids=["4 bit", "8 bit"])
def test_bitsandbytes(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(**options), device_map="cpu"
    ).eval()
    assert type(model.model.layers[0].mlp.down_proj).__name__ in ("Linear4bit", "Linear8bitLt")
    check(model)


def check(model: Any) -> None:
    """Dense at keep = 1, sparse below, nothing gathered from packed weights, the same model afterwards."""
    call, step = inputs("llama"), {"input_ids": torch.tensor([[9]])}
    dense, before = logits(model, call), state(model)
    with hf_sparsify.patch(model, TopK(keep=1.0), TopKFeedForward(keep=1.0)):
        # Rounding of activations to 8 bits turns the least difference into a small one.
        assert float((logits(model, call) - dense).abs().max()) < 0.02 * float(dense.abs().max())
    with hf_sparsify.patch(model, TopK(k=3), TopKFeedForward(k=4)) as patch:
        sparse = logits(model, call)
        assert far(sparse, dense)
        assert logits(model, step).isfinite().all()
        assert all(layer.calls == 2 for layer in patch.feed_forward)
        assert not any(weight in copies for weight in model.parameters())
        close(logits(model, call), sparse)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)
