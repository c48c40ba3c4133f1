"""Training patched feed-forward layers in tests: outputs and gradients, with whole layers and without."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hf_sparsify.patcher.binding.feed_forward_layer import LayerPatch
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import TopKFeedForward
from torch import Tensor, nn

SOME = TopKFeedForward(k=4)
WHOLE = "torch: gradients of a whole layer"


def train(model: nn.Module, call: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """An output of the model, and all gradients of a weighted sum of it."""
    model.zero_grad()
    torch.manual_seed(0)
    out = next(value for value in model(**call).values() if isinstance(value, Tensor) and value.is_floating_point())
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_down_projections(model: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """A copy whose whole layers are left to autograd."""
    other = copy.deepcopy(model)
    for layer in apply_plan(other, plan).feed_forward:
        if layer.layer is not None:
            layer.layer.uninstall()
    return other


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], tolerance: float) -> None:
    assert one[1].keys() == other[1].keys()
    for actual, expected in [(one[0], other[0]), *((one[1][name], other[1][name]) for name in other[1])]:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def only_patch(model: nn.Module) -> LayerPatch:
    layer = apply_plan(model, {"model.layers.0.mlp.down_proj": SOME}).feed_forward[0].layer
    assert layer is not None
    return layer
