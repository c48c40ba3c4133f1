"""Random tiny models of every way that a family names its feed-forward layers, and what their forward takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from families.encoder_decoders import BART, T5
from families.family import SIZES, TEXT
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.methods import TopKFeedForward
from tiny_models import FAMILIES, VOCABULARY, build, inputs
from torch import Tensor, nn

_MOE: dict[str, Any] = {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
_IMAGE: dict[str, Any] = {**SIZES, "image_size": 8, "patch_size": 4}
_SPEECH: dict[str, Any] = {**BART, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 32}

_MAKERS: dict[str, Callable[[], Any]] = {
    "t5-gated": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=97, hidden_size=32, word_embed_proj_dim=32, ffn_dim=40, num_hidden_layers=2,
                     num_attention_heads=4, max_position_embeddings=64)
    ),
    "whisper": lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**_SPEECH)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(vocab_size=97, dim=32, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=64)
    ),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=16)),
    "moonshine": lambda: hf.MoonshineForConditionalGeneration(
        hf.MoonshineConfig(
            vocab_size=97, hidden_size=32, intermediate_size=40, encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=2, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        )
    ),
    "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**TEXT, cls_token_id=1, sep_token_id=2)),
    "vit": lambda: hf.ViTModel(hf.ViTConfig(**_IMAGE)),
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=_IMAGE)),
    "bert-cross": lambda: hf.BertLMHeadModel(hf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**TEXT, **_MOE)),
    "switch": lambda: hf.SwitchTransformersForConditionalGeneration(
        hf.SwitchTransformersConfig(**T5, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
    ),
}  # fmt: skip

MIXTURES = ("gpt_oss", "mixtral", "switch")
NAMES = tuple(name for name in (*FAMILIES, *_MAKERS) if name not in MIXTURES)


def make(name: str) -> Any:
    """A model in eval mode whose feed-forward layers matter as much as its attention."""
    if name in FAMILIES:
        return build(name)
    torch.manual_seed(1)
    model = _MAKERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


def call_of(name: str) -> dict[str, Tensor]:
    if name in FAMILIES:
        return inputs(name)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCABULARY, (2, 12), generator=generator)
    image = torch.randn(2, 3, 8, 8, generator=generator)
    if name == "vit":
        return {"pixel_values": image}
    if name == "clip":
        return {"input_ids": ids, "pixel_values": image}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 16, generator=generator), "decoder_input_ids": ids[:, :6]}
    if name == "moonshine":
        return {"input_values": torch.randn(2, 2000, generator=generator), "decoder_input_ids": ids[:, :6]}
    if name == "bert-cross":
        return {"input_ids": ids, "encoder_hidden_states": torch.randn(2, 5, 32, generator=generator)}
    if name in ("t5-gated", "switch"):
        return {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    return {"input_ids": ids}


@torch.no_grad()
def output(model: nn.Module, call: dict[str, Tensor]) -> Tensor:
    """The first floating-point output of a forward call, scores before hidden states."""
    out = model(**call)
    for field in ("logits", "start_logits", "logits_per_image", "last_hidden_state"):
        if field in out:
            return out[field]
    raise ValueError(f"no output known in {list(out)}")


def every_layer(model: nn.Module, method: TopKFeedForward) -> dict[str, Any]:
    return {target.name: method for target in feed_forward_modules(model)}
