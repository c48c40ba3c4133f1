"""Encoders: every model that reads a text in both directions."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

from .family import GQA, IDS, TEXT, VOCABULARY, Call, Family, Inputs, text

_DISTIL: dict[str, Any] = {
    **IDS,
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
_MODERN: dict[str, Any] = {"global_attn_every_n_layers": 2, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}


def _markup(padding: str, length: int, batch: int) -> Inputs:
    """Every token at another place of a page."""
    call, generator = text(padding, length, batch), torch.Generator().manual_seed(9)
    call["xpath_tags_seq"] = torch.randint(200, (batch, length, 50), generator=generator)
    call["xpath_subs_seq"] = torch.randint(200, (batch, length, 50), generator=generator)
    return call


def _question(padding: str, length: int, batch: int) -> Inputs:
    call = text(padding, length, batch)
    call["input_ids"][:, length // 2] = 3  # Splinter's answers depend on where this token is
    return call


def _encoder(name: str, model_class: str, call: Call = text, **fields: Any) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(**{**TEXT, **fields}))

    return Family(name, make, call)


def _distilbert() -> PreTrainedModel:
    return hf.DistilBertForQuestionAnswering(hf.DistilBertConfig(**_DISTIL))


def _llama() -> PreTrainedModel:
    config = hf.LlamaConfig(**GQA)
    config.is_causal = False
    return hf.LlamaForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    layers = ["full_attention", "full_attention"]
    return hf.Gemma3TextModel(
        hf.Gemma3TextConfig(**GQA, query_pre_attn_scalar=8, layer_types=layers, use_bidirectional_attention=True)
    )


_FAMILIES = (
    _encoder("bert", "BertForQuestionAnswering"),
    _encoder("roberta", "RobertaForQuestionAnswering"),
    _encoder("xlm_roberta", "XLMRobertaForQuestionAnswering"),
    _encoder("camembert", "CamembertForQuestionAnswering"),
    _encoder("roberta_prelayernorm", "RobertaPreLayerNormForQuestionAnswering"),
    Family("distilbert", _distilbert, text),
    _encoder("albert", "AlbertForQuestionAnswering", embedding_size=16),
    _encoder("electra", "ElectraForQuestionAnswering", embedding_size=16),
    _encoder("ernie", "ErnieForQuestionAnswering"),
    _encoder("modernbert", "ModernBertForQuestionAnswering", **_MODERN),
    _encoder("splinter", "SplinterForQuestionAnswering", _question, question_token_id=3),
    _encoder("markuplm", "MarkupLMForQuestionAnswering", _markup),
    _encoder("layoutlm", "LayoutLMForTokenClassification"),
    _encoder("esm", "EsmForTokenClassification"),
    Family("llama_both_ways", _llama, text),
    Family("gemma3_both_ways", _gemma3, text),
    _encoder("data2vec_text", "Data2VecTextForQuestionAnswering"),
)

ENCODERS = {family.name: family for family in _FAMILIES}
