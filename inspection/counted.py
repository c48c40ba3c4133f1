"""Attention that is only there to be counted: its two products, and no mask that would need values or memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ..patcher.binding.modules import INTERFACE, attention_modules

COUNTED_NAME = "hf_sparsify_counted"


def count_attention(model: nn.Module) -> None:
    """Switches the attention modules of a model to products alone. transformers makes no masks for a name that it knows
    no mask builder for."""
    AttentionInterface.register(COUNTED_NAME, _products)
    if not any(target.route == INTERFACE for target in attention_modules(model)):
        return
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel) or hasattr(config, "_attn_implementation"):
            config._attn_implementation_internal = COUNTED_NAME


def _products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """query [B, heads, n, d], key and value [B, KV heads, m, d] -> [B, n, heads, d], with meaningless values."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(-1, -2)
    return (scores @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), None
