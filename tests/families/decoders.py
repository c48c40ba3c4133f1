"""Decoders: every model that continues a text."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers import PreTrainedModel

from .family import GQA, IDS, TEXT, VOCABULARY, WINDOW, Family, positioned_text

MODES = ("greedy", "beams", "static cache", "chunked prefill")

_GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
_HYBRID: dict[str, Any] = {**GQA, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_MIXTURE: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
_EXPERTS: dict[str, Any] = {**_MIXTURE, "num_experts": 2, "moe_intermediate_size": 24}
_LATENT: dict[str, Any] = {
    **_MIXTURE,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
_GPT2: dict[str, Any] = {**IDS, "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def _decoder(name: str, model_class: str, fields: dict[str, Any], **options: Any) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(**fields))

    return Family(name, make, **{"call": positioned_text, "modes": MODES, "bidirectional": False, **options})


_FAMILIES = (
    _decoder("llama", "LlamaForCausalLM", GQA),
    _decoder("mistral", "MistralForCausalLM", {**GQA, "sliding_window": WINDOW}, window=True),
    _decoder("mixtral", "MixtralForCausalLM", {**GQA, **_MIXTURE},
             feed_forward=False),
    _decoder("ministral", "MinistralForCausalLM", _HYBRID, window=True),
    _decoder("qwen2", "Qwen2ForCausalLM", {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW,
                                           "max_window_layers": 1}, window=True),
    _decoder("qwen2_moe", "Qwen2MoeForCausalLM", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24},
             feed_forward=False),
    _decoder("qwen3", "Qwen3ForCausalLM", GQA),
    _decoder("qwen3_moe", "Qwen3MoeForCausalLM", {**GQA, **_EXPERTS}, feed_forward=False),
    _decoder("gemma", "GemmaForCausalLM", GQA),
    _decoder("gemma2", "Gemma2ForCausalLM", {**_HYBRID, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
             window=True),
    _decoder("gemma3", "Gemma3ForCausalLM", {**_HYBRID, "query_pre_attn_scalar": 8}, window=True),
    _decoder("gpt_oss", "GptOssForCausalLM", {**_HYBRID, **_MIXTURE},
             window=True, feed_forward=False),
    _decoder("phi", "PhiForCausalLM", TEXT),
    _decoder("phi3", "Phi3ForCausalLM", _GROUPED),
    _decoder("smollm3", "SmolLM3ForCausalLM", _GROUPED),
    _decoder("olmo", "OlmoForCausalLM", _GROUPED),
    _decoder("olmo2", "Olmo2ForCausalLM", _GROUPED),
    _decoder("olmo3", "Olmo3ForCausalLM", _HYBRID, window=True),
    _decoder("cohere", "CohereForCausalLM", _GROUPED),
    _decoder("cohere2", "Cohere2ForCausalLM", _HYBRID, window=True),
    _decoder("granite", "GraniteForCausalLM", _GROUPED),
    _decoder("deepseek_v3", "DeepseekV3ForCausalLM", {**TEXT, **_LATENT}, feed_forward=False),
    _decoder("stablelm", "StableLmForCausalLM", _GROUPED),
    _decoder("starcoder2", "Starcoder2ForCausalLM", _GROUPED),
    _decoder("glm4", "Glm4ForCausalLM", GQA),
    _decoder("nemotron", "NemotronForCausalLM", _GROUPED),
    _decoder("exaone4", "Exaone4ForCausalLM", _HYBRID, window=True),
    _decoder("ernie4_5", "Ernie4_5ForCausalLM", GQA),
    _decoder("gpt2", "GPT2LMHeadModel", _GPT2),
    _decoder("gpt_bigcode", "GPTBigCodeForCausalLM", {**_GPT2, "multi_query": True}),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", TEXT),
    _decoder("opt", "OPTForCausalLM", {**TEXT, "ffn_dim": 40, "word_embed_proj_dim": 32}),
    _decoder("biogpt", "BioGptForCausalLM", TEXT),
    _decoder("bert_decoder", "BertLMHeadModel", {**TEXT, "is_decoder": True}),
)  # fmt: skip

DECODERS = {family.name: family for family in _FAMILIES}
