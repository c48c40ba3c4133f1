"""Patched tiny models, and how to compare them with their dense selves."""

from __future__ import annotations

from typing import Any

import torch
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import AttentionMethod, TopK
from tiny_models import DECODERS, ENCODER_DECODERS, build
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

WHOLE, FEW = TopK(k=64), TopK(k=3)
PADDINGS = ("none", "left", "right")
# Absolute positions count padding on the left as well there.
ONLY_RIGHT = ("bert", "bart")
GENERATORS = (*DECODERS, *ENCODER_DECODERS)


def everything(model: nn.Module, method: AttentionMethod) -> dict[str, AttentionMethod]:
    return {target.name: method for target in attention_modules(model)}


def patched(name: str, method: AttentionMethod) -> PreTrainedModel:
    model = build(name)
    apply_plan(model, everything(model, method))
    return model


def one_layer(name: str) -> PreTrainedModel:
    """A tiny model for a compiler: tracing takes a second per layer, and all layers are alike."""
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and isinstance(module[0], GradientCheckpointingLayer):
            del module[1:]
    return model


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def far(actual: Tensor, expected: Tensor) -> bool:
    """More apart than rounding could make them."""
    return float((actual - expected).abs().max()) > 1e-3


def state(model: nn.Module) -> dict[str, Any]:
    """All that patching may touch: configs, module attributes, state dict keys, hooks."""
    return {
        name: (
            getattr(getattr(module, "config", None), "_attn_implementation_internal", None),
            sorted(vars(module)),
            module.forward.__func__ if hasattr(module.forward, "__func__") else None,
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }
