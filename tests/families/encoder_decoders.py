"""Encoder-decoders that read a text and write another."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers import PreTrainedModel

from .family import IDS, TEXT, VOCABULARY, Family, Inputs, decoder_ids, text

MODES = ("greedy", "beams", "static cache")

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_GATED: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu"}
BART: dict[str, Any] = {
    **IDS,
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
# T5 does not divide its scores by the square root of the head width.
_T5_WIDTH = 0.16


def both_texts(padding: str, length: int, batch: int) -> Inputs:
    """A text, padded if asked, and the tokens of an answer."""
    return {**text(padding, length, batch), "decoder_input_ids": decoder_ids(batch)}


def _model(name: str, model_class: str, fields: dict[str, Any], **options: Any) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(**fields))

    return Family(name, make, both_texts, **{"modes": MODES, **options})


def _two_berts() -> PreTrainedModel:
    encoder = hf.BertModel(hf.BertConfig(**TEXT))
    decoder = hf.BertLMHeadModel(hf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True))
    model = hf.EncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return model


_FAMILIES = (
    _model("t5", "T5ForConditionalGeneration", T5, width=_T5_WIDTH),
    _model("t5_gated", "T5ForConditionalGeneration", _GATED, width=_T5_WIDTH),
    _model("mt5", "MT5ForConditionalGeneration", _GATED, width=_T5_WIDTH),
    _model("umt5", "UMT5ForConditionalGeneration", _GATED, width=_T5_WIDTH),
    _model("longt5", "LongT5ForConditionalGeneration",
           {**_GATED, "local_radius": 4, "encoder_attention_type": "local"}, width=_T5_WIDTH,
           bidirectional=False),
    _model("bart", "BartForConditionalGeneration", BART),
    _model("pegasus", "PegasusForConditionalGeneration", BART),
    _model("marian", "MarianMTModel", BART),
    _model("mbart", "MBartForConditionalGeneration", BART),
    _model("m2m_100", "M2M100ForConditionalGeneration", BART),
    _model("blenderbot", "BlenderbotForConditionalGeneration", BART),
    _model("plbart", "PLBartForConditionalGeneration", BART),
    Family("two_berts", _two_berts, both_texts, modes=MODES),
)  # fmt: skip

ENCODER_DECODERS = {family.name: family for family in _FAMILIES}
