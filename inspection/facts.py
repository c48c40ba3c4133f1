"""What a person wants to know of each attention module and feed-forward layer, read off the module and its config."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import NotPatchableError
from ..patcher.binding.feed_forward import FeedForwardModule
from ..patcher.binding.modules import AttentionModule
from ..patcher.binding.patchable import PatchableModule, check_module
from ..patcher.methods import Clustered, Method, TopK, TopKFeedForward, TopTheta

# One of each that a module either takes or not; plain clustered attention goes where clustered does.
CANDIDATES: tuple[Method, ...] = (TopK(k=1), TopTheta(k=1), Clustered(), TopKFeedForward(k=1))
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn", "activation")


@dataclass(frozen=True)
class AttentionFacts:
    """One attention module. kind, stack, layer, route: as in AttentionModule. None: the module does not say.

    window: keys that a row sees back. position_bias: "ALiBi", "position bias" (such as T5's) or None. soft_cap: of the
    scores. sinks: whether each head has a learned one. methods: those that it takes.
    """

    name: str
    kind: str
    stack: str
    layer: int | None
    route: str
    causal: bool
    window: int | None
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    position_bias: str | None
    soft_cap: float | None
    sinks: bool
    methods: tuple[str, ...]


@dataclass(frozen=True)
class FeedForwardFacts:
    """One feed-forward layer, by its down-projection. gated: the product of two projections."""

    name: str
    kind: str
    stack: str
    layer: int | None
    d_ff: int | None
    gated: bool
    activation: str | None
    methods: tuple[str, ...]


def attention_facts(target: AttentionModule) -> AttentionFacts:
    module = target.module
    return AttentionFacts(
        name=target.name,
        kind=target.kind,
        stack=target.stack,
        layer=target.layer,
        route=target.route,
        causal=target.causal,
        window=target.window,
        heads=target.heads,
        kv_heads=_kv_heads(target),
        head_size=_head_size(target),
        position_bias=_position_bias(target),
        soft_cap=_number(module, "attn_logit_softcapping"),
        sinks=getattr(module, "sinks", None) is not None,
        methods=_methods(target),
    )


def feed_forward_facts(model: nn.Module, target: FeedForwardModule) -> FeedForwardFacts:
    parent = model.get_submodule(target.name.rpartition(".")[0])
    return FeedForwardFacts(
        name=target.name,
        kind=target.kind,
        stack=target.stack,
        layer=target.layer,
        d_ff=target.d_ff,
        gated=_gated(parent, target),
        activation=_activation(model, target.name),
        methods=_methods(target),
    )


def _methods(target: PatchableModule) -> tuple[str, ...]:
    """The names of the methods that check_module lets through."""
    taken = []
    for method in CANDIDATES:
        try:
            check_module(target, method)
        except NotPatchableError:
            continue
        taken.append(method.name)
    return tuple(taken)


def _number(module: nn.Module, *names: str) -> Any:
    """The first of some numbers that a module has, or else its config."""
    for source in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return value
    return None


def _kv_heads(target: AttentionModule) -> int | None:
    groups = getattr(target.module, "num_key_value_groups", None)
    if target.heads is not None and isinstance(groups, int):
        return target.heads // groups
    return _number(target.module, "num_key_value_heads", "num_kv_heads") or target.heads


def _head_size(target: AttentionModule) -> int | None:
    found = _number(target.module, "head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")
    width = _number(target.module, "embed_dim", "hidden_size", "d_model", "dim")
    return found or (width // target.heads if width and target.heads else None)


def _position_bias(target: AttentionModule) -> str | None:
    """As the arguments of its forward are called."""
    taken = inspect.signature(target.module.forward).parameters
    if "alibi" in taken and getattr(getattr(target.module, "config", None), "alibi", True):
        return "ALiBi"
    return "position bias" if "position_bias" in taken and target.kind == "self" else None


def _gated(parent: nn.Module, target: FeedForwardModule) -> bool:
    """Whether the inner activations are a product of two projections, which may lie in one weight."""
    before = [module for module in parent.children() if module is not target.module]
    widths = [width for width in map(_outputs, before) if width is not None]
    return target.d_ff is not None and (widths.count(target.d_ff) > 1 or 2 * target.d_ff in widths)


def _outputs(module: nn.Module) -> int | None:
    return module.nf if isinstance(module, Conv1D) else getattr(module, "out_features", None)


def _activation(model: nn.Module, name: str) -> str | None:
    """As the nearest configuration around a module names it."""
    while name:
        name = name.rpartition(".")[0]
        config = getattr(model.get_submodule(name), "config", None)
        for attribute in ACTIVATIONS:
            value = getattr(config, attribute, None)
            if isinstance(value, str):
                return value
    return None
