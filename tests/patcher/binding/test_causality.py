"""Models of causal families that see later tokens too: what they are is asked of their configuration."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from families.family import GQA, IDS, TEXT
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.tasks import task_of
from transformers import PreTrainedModel

_XLM: dict[str, Any] = {"vocab_size": 97, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
_XLNET: dict[str, Any] = {**IDS, "vocab_size": 97, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40}
_NEO: dict[str, Any] = {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}
_MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GQA, {"is_causal": False}),
    "gemma": ("Gemma3ForCausalLM", GQA, {"use_bidirectional_attention": True}),
    "xlnet": ("XLNetLMHeadModel", {**_XLNET, "attn_type": "uni"}, {"attn_type": "bi"}),
    "xlm": ("XLMWithLMHeadModel", {**_XLM, "causal": True}, {"causal": False}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        {},
    ),
}


def build(name: str, **changes: Any) -> PreTrainedModel:
    model_class = getattr(hf, _MODELS[name][0])
    model: PreTrainedModel = model_class(model_class.config_class(**{**_MODELS[name][1], **changes}))
    model.config.architectures = [_MODELS[name][0]]
    return model


@pytest.mark.parametrize("name", [name for name in _MODELS if _MODELS[name][2]])
def test_what_looks_both_ways_is_an_encoder(name: str) -> None:
    model = build(name, **_MODELS[name][2])
    assert task_of(model.config) == "encoder"
    assert {target.stack for target in attention_modules(model)} == {"encoder"}
    assert not any(target.causal for target in attention_modules(model))


@pytest.mark.parametrize("name", _MODELS)
def test_what_does_not_is_a_causal_language_model(name: str) -> None:
    model = build(name)
    assert task_of(model.config) == "causal-lm"
    assert all(target.causal for target in attention_modules(model))
