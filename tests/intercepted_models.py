"""Tiny random models of families that compute attention themselves, outside the transformers attention interface."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from families.encoder_decoders import BART, T5
from families.family import IDS, TEXT, VOCABULARY
from torch import Tensor
from transformers import PreTrainedModel

_WORDS: dict[str, Any] = {**IDS, "vocab_size": VOCABULARY}
_POSITIONS: dict[str, Any] = {**_WORDS, "max_position_embeddings": 64}
_GPT: dict[str, Any] = {**_WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FALCON: dict[str, Any] = {**TEXT, "new_decoder_architecture": False}
_XLM: dict[str, Any] = {**_POSITIONS, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
_DEBERTA: dict[str, Any] = {
    **TEXT,
    "pos_att_type": ["c2p", "p2c"],
    "relative_attention": True,
    "max_relative_positions": 32,
}
_LONGT5: dict[str, Any] = {**T5, "local_radius": 7, "global_block_size": 4}
_XLNET: dict[str, Any] = {**_WORDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40}
_BLOCKS: dict[str, Any] = {"block_size": 4, "num_random_blocks": 1}
_GROUPS = ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups")

Family = dict[str, tuple[str, dict[str, Any]]]

DECODERS: Family = {
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {**TEXT, "num_layers": 2, "num_heads": 4, "window_size": 5, "attention_types": [[["global", "local"], 1]]},
    ),
    "codegen": ("CodeGenForCausalLM", {**_GPT, "rotary_dim": 4}),
    "bloom": ("BloomForCausalLM", {**_WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (
        "MptForCausalLM",
        {**_WORDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    ),
    "falcon": ("FalconForCausalLM", {**_FALCON, "multi_query": True}),
    "falcon_alibi": ("FalconForCausalLM", {**_FALCON, "multi_query": False, "alibi": True}),
    "xglm": ("XGLMForCausalLM", {**_POSITIONS, "d_model": 32, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4}),
    "gpt_neox_japanese": ("GPTNeoXJapaneseForCausalLM", {**TEXT, "intermediate_multiple_size": 2}),
}
ENCODERS: Family = {
    "mpnet": ("MPNetModel", TEXT),
    "deberta": ("DebertaModel", _DEBERTA),
    "deberta_v2": ("DebertaV2Model", {**_DEBERTA, "position_buckets": 8, "share_att_key": True}),
    "megatron_bert": ("MegatronBertModel", TEXT),
    "rembert": ("RemBertModel", {**TEXT, "input_embedding_size": 32, "output_embedding_size": 32}),
    "roformer": ("RoFormerModel", {**TEXT, "embedding_size": 32}),
    "squeezebert": ("SqueezeBertModel", {**TEXT, "embedding_size": 32, **dict.fromkeys(_GROUPS, 2)}),
    "ibert": ("IBertModel", TEXT),
    "luke": ("LukeModel", {**TEXT, "entity_vocab_size": 10, "entity_emb_size": 16}),
    "tapas": ("TapasModel", TEXT),
    "big_bird (full)": ("BigBirdModel", {**TEXT, "attention_type": "original_full"}),
    "xlm": ("XLMModel", _XLM),
    "flaubert": ("FlaubertModel", _XLM),
    "xlnet": ("XLNetModel", _XLNET),
}
ENCODER_DECODERS: Family = {
    "longt5 (local)": ("LongT5ForConditionalGeneration", {**_LONGT5, "encoder_attention_type": "local"}),
    "longt5 (global)": ("LongT5ForConditionalGeneration", {**_LONGT5, "encoder_attention_type": "transient-global"}),
    "mvp": ("MvpForConditionalGeneration", BART),
    "bigbird_pegasus (full)": ("BigBirdPegasusForConditionalGeneration", {**BART, "attention_type": "original_full"}),
}
# Their encoder is intercepted, their decoder calls the interface.
BOTH_ROUTES = ("longt5 (local)", "longt5 (global)", "bigbird_pegasus (full)")
FAMILIES: Family = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}

# Each with a part of the sentence that refuses it.
_TWICE = "calls softmax and then softmax"
_FORM = "which dimension of its scores .* counts its 4 heads is not clear"
_NO_WAY = "in a way that cannot be intercepted"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "nystromformer": ("NystromformerModel", {**TEXT, "num_landmarks": 8, "segment_means_seq_len": 48}, _TWICE),
    "big_bird (sparse)": ("BigBirdModel", {**TEXT, "attention_type": "block_sparse", **_BLOCKS}, _NO_WAY),
    "pegasus_x": ("PegasusXForConditionalGeneration", {**BART, "block_size": 8, "num_global_tokens": 4}, _TWICE),
    "longformer": ("LongformerModel", {**TEXT, "attention_window": [4, 4]}, _FORM),
    "led": (
        "LEDForConditionalGeneration",
        {**BART, "attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
        _FORM,
    ),
    "reformer": (
        "ReformerModel",
        {**TEXT, "attention_head_size": 8, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
        f"LSHSelfAttention, LocalSelfAttention computes attention {_NO_WAY}",
    ),
    "yoso": ("YosoModel", TEXT, f"YosoSelfAttention computes attention {_NO_WAY}"),
    "fnet": ("FNetModel", TEXT, "it has no attention module"),
}


def task_of(name: str) -> str:
    """As the proof of patch knows it."""
    if name in DECODERS:
        return "causal-lm"
    return "seq2seq-lm" if FAMILIES.get(name, REFUSED.get(name))[0].endswith("ConditionalGeneration") else "retrieval"  # type: ignore[index]


def build(name: str) -> PreTrainedModel:
    """A random model in eval mode. Its weights are large enough that attention is far from uniform."""
    class_name, fields = (FAMILIES[name] if name in FAMILIES else REFUSED[name])[:2]
    model_class = getattr(transformers, class_name)
    model: PreTrainedModel = model_class(model_class.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    width = 0.16 if "longt5" in name else 0.3  # it does not divide its scores by the square root of the head width
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)
    return model


def inputs(name: str, padding: str = "none", length: int = 12) -> dict[str, Tensor]:
    """What a forward call of two sequences takes; "left" or "right" pads the second by 4, "none" passes no mask."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, VOCABULARY, (2, length), generator=generator)
    call = {"input_ids": ids}
    if padding != "none":
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[1, slice(0, 4) if padding == "left" else slice(length - 4, None)] = 0
        call = {"input_ids": ids * mask, "attention_mask": mask}
    if name in ENCODER_DECODERS:
        call["decoder_input_ids"] = torch.randint(5, VOCABULARY, (2, 7), generator=generator)
    return call


@torch.no_grad()
def output(model: PreTrainedModel, call: dict[str, Tensor]) -> Tensor:
    """The model's logits or last hidden states, [batch, positions, ...]."""
    found = model(**call)
    return found.logits if "logits" in found else found.last_hidden_state


def real_positions(name: str, call: dict[str, Tensor]) -> Tensor:
    """bool [batch, positions], False for the output at padding."""
    if name in ENCODER_DECODERS:
        return torch.ones(call["decoder_input_ids"].shape, dtype=torch.bool)
    return call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
