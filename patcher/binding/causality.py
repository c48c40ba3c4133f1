"""Whether attention sees later tokens, as modules and configurations say it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

# Text towers of CLIP and its kin: their modules say is_causal=False, and every call hands over True.
CAUSAL_TEXT_TOWERS = frozenset(
    f"{family}_text_model" for family in ("clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "xclip")
)


def calls_itself_causal(module: nn.Module) -> bool:
    """What the calls of a module on the interface will say; a configuration may make a decoder look both ways."""
    config = getattr(module, "config", None)
    if getattr(config, "model_type", None) in CAUSAL_TEXT_TOWERS:
        return True
    return bool(getattr(module, "is_causal", False)) and getattr(config, "is_causal", True) is not False


def looks_both_ways(config: Any) -> bool:
    """Whether a configuration makes a model of a causal family, or one with a causal head, see later tokens too."""
    return (
        getattr(config, "is_causal", True) is False
        or getattr(config, "use_bidirectional_attention", None) in (True, "all")  # Gemma
        or getattr(config, "attn_type", None) == "bi"  # XLNet
        or getattr(config, "causal", True) is False  # XLM, FlauBERT
    )


def is_decoder(model_class: str, config: Any) -> bool:
    """Whether a model without marked modules is a causal decoder: its configuration says so, its class is a language
    model's, or its family has a causal language model and no masked one."""
    if getattr(config, "is_encoder_decoder", False) or looks_both_ways(config):
        return False
    if getattr(config, "is_decoder", False) or model_class.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    family, own = getattr(config, "model_type", None), getattr(config, "auto_map", None) or {}
    causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own
    masked = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or "AutoModelForMaskedLM" in own
    return causal and not masked
