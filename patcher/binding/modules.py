"""Which modules of a model are attention, what kind each is, and which can be patched."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import NotPatchableError
from .causality import calls_itself_causal, is_decoder

CROSS_NAMES = frozenset({"crossattention", "cross_attn", "encoder_attn", "EncDecAttention", "cross_attention"})

# A module is patched through the attention interface of transformers that it calls, or else by replacing the softmax or
# torch's SDPA while its forward runs (interception.py).
INTERFACE, INTERCEPTION = "interface", "interception"
ACCURACY_ONLY = "interception: accuracy only"  # said wherever a plan has intercepted modules
OWN_ATTENTION = frozenset({"softmax", "Softmax", "scaled_dot_product_attention"})


@dataclass(frozen=True)
class AttentionModule:
    """One attention module, known by its fully qualified name.

    kind: "self" or "cross". stack: "encoder" or "decoder". layer: its number in the stack, None if it has none.
    heads: query heads, None if the module does not say. route: how it is patched, INTERFACE or INTERCEPTION.
    """

    name: str
    module: nn.Module
    kind: str
    stack: str
    layer: int | None
    heads: int | None
    route: str = INTERFACE

    @property
    def causal(self) -> bool:
        return self.kind == "self" and self.stack == "decoder"

    @property
    def window(self) -> int | None:
        """How many keys a row of self-attention sees back, its own included (in an encoder forward too); None: all."""
        if self.kind == "cross":
            return None
        window = getattr(self.module, "sliding_window", None)
        config = getattr(self.module, "config", None)
        if self.causal and not hasattr(self.module, "sliding_window") and not getattr(config, "layer_types", None):
            window = getattr(config, "sliding_window", None)  # of every layer, as in Mistral
        return window if isinstance(window, int) else None

    @property
    def nature(self) -> str:
        """Which keys its rows see, in words: thresholds of one nature mean nothing for another."""
        if self.kind == "cross":
            return "cross-attention"
        kind = "causal self-attention" if self.causal else "bidirectional"
        return kind if self.window is None else f"{kind} in a window of {self.window}"


def attention_modules(model: nn.Module) -> list[AttentionModule]:
    """The modules of a model that can be patched, by either route, in module order."""
    routes = {name: route for name, module in model.named_modules() if (route := _route(module)) is not None}
    inner = _without_nested(routes)
    found = []
    for name, module in model.named_modules():
        if name in inner:
            kind = _kind(name, module)
            stack = _stack(name, module, kind) if inner[name] == INTERFACE else _own_stack(model, name, module, kind)
            found.append(
                AttentionModule(name, module, kind, stack, layer_number(name), head_count(module), inner[name])
            )
    return found


def _without_nested(routes: dict[str, str]) -> dict[str, str]:
    """Each attention once: what calls the interface, and of the others the innermost that are not in one that does."""
    interface = {name for name, route in routes.items() if route == INTERFACE}
    holders = {holder for name in routes for holder in holders_of(name)}
    return {
        name: route
        for name, route in routes.items()
        if name in interface or (name not in holders and not interface & set(holders_of(name)))
    }


def holders_of(name: str) -> list[str]:
    """The names of the modules that a module is in, the nearest first: "a.b.c" -> ["a.b", "a", ""]."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in reversed(range(len(parts)))]


def alike(name: str) -> str:
    """What --set takes for a module and its likes in other layers: "h.0.attn" -> "re:h\\.\\d+\\.attn"."""
    return "re:" + re.sub(r"\d+", r"\\d+", re.escape(name))


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs. Offloaded weights are nowhere; hooks of Accelerate then move the inputs."""
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside what torch.compile and PEFT put around it: plans use its own names of modules."""
    if "_orig_mod" in model._modules:
        return unwrapped(model._modules["_orig_mod"])  # type: ignore[arg-type]
    if hasattr(type(model), "get_base_model"):
        return unwrapped(model.get_base_model())  # type: ignore[operator]
    return model


def unreachable_attention(model: nn.Module) -> list[str]:
    """Class names of the attention modules that neither route can patch."""
    reached = {target.name for target in attention_modules(model)}
    named = {name: type(module).__name__ for name, module in model.named_modules() if _is_attention(module)}
    holders = {holder for name in (*named, *reached) for holder in holders_of(name)}
    return sorted(
        {cls for name, cls in named.items() if name not in holders and not reached & {name, *holders_of(name)}}
    )


def require_attention_modules(model: nn.Module) -> list[AttentionModule]:
    """attention_modules, or NotPatchableError that names the family and what it lacks."""
    found = attention_modules(model)
    if found:
        return found
    own = unreachable_attention(model)
    way = "computes attention in a way that cannot be intercepted"
    reason = f"its {', '.join(own)} {way}" if own else "it has no attention module"
    raise NotPatchableError(
        f"{type(model).__name__} cannot be patched: {reason}, outside the transformers attention interface"
    )


def _route(module: nn.Module) -> str | None:
    if _uses_interface(module):
        return INTERFACE
    own = _is_attention(module) and not _class_uses_interface(type(module)) and mentions(type(module), OWN_ATTENTION)
    return INTERCEPTION if own and not _replaces_itself(module) else None


def _is_attention(module: nn.Module) -> bool:
    return "ttention" in type(module).__name__ and not isinstance(module, PreTrainedModel)


def _replaces_itself(module: nn.Module) -> bool:
    """BigBird's sparse attention calls softmax several times, and a short text puts another module in its place."""
    return "BlockSparse" in type(module).__name__


def interception_of(model: nn.Module, plan: Iterable[str]) -> dict[str, Any] | None:
    """The modules of a plan that are intercepted and what to say of it, ready for JSON; None if there are none."""
    found = [target for target in attention_modules(unwrapped(model)) if target.route == INTERCEPTION]
    planned = [target for target in found if target.name in set(plan)]
    if not planned:
        return None
    classes = ", ".join(sorted({type(target.module).__name__ for target in planned}))
    note = (
        f"{ACCURACY_ONLY}, in {len(planned)} module{'s' * (len(planned) > 1)} ({classes}): they select the same keys, "
        "and are no faster than the dense model"
    )
    return {"modules": [target.name for target in planned], "note": note}


def _uses_interface(module: nn.Module) -> bool:
    return hasattr(module, "config") and not isinstance(module, PreTrainedModel) and _class_uses_interface(type(module))


def _class_uses_interface(cls: type) -> bool:
    forward = getattr(inspect.unwrap(cls.forward), "__code__", None) if hasattr(cls, "forward") else None
    return forward is not None and bool({"ALL_ATTENTION_FUNCTIONS", "get_interface"} & set(forward.co_names))


def mentions(cls: type, functions: Collection[str]) -> bool:
    """Whether the methods of a class mention any of these names."""
    names: set[str] = set()
    for base in cls.__mro__:
        for member in vars(base).values():
            if inspect.isfunction(member) and base is not nn.Module:
                names |= set(inspect.unwrap(member).__code__.co_names)
    return not names.isdisjoint(functions)


def _kind(name: str, module: nn.Module) -> str:
    cross = (
        getattr(module, "is_cross_attention", False)
        or "Cross" in type(module).__name__
        or bool(CROSS_NAMES & set(name.split(".")))
    )
    return "cross" if cross else "self"


def _stack(name: str, module: nn.Module, kind: str) -> str:
    parts = name.split(".")
    if kind == "cross" or "decoder" in parts:
        return "decoder"
    return "decoder" if calls_itself_causal(module) else "encoder"


def _own_stack(model: nn.Module, name: str, module: nn.Module, kind: str) -> str:
    """As _stack for a module outside the interface: where it does not say whether it is causal, its model does."""
    if kind == "cross" or "decoder" in name.split("."):
        return "decoder"
    for flag in ("is_causal", "is_decoder"):
        if isinstance(getattr(module, flag, None), bool):
            return "decoder" if getattr(module, flag) else "encoder"
    holders = {holder: module for holder, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    owner = next((holders[holder] for holder in holders_of(name) if holder in holders), model)
    config = getattr(owner, "config", None)
    head = model if config is getattr(model, "config", None) else owner  # a part such as a vision tower has its own
    return "decoder" if is_decoder(type(head).__name__, config) else "encoder"


def layer_number(name: str) -> int | None:
    """The first number in a module's name: its layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def head_count(module: nn.Module) -> int | None:
    """How many query heads a module or its config says that it has."""
    return _said(module, "num_heads", "n_heads", "num_attention_heads", "n_head", "num_attn_heads")


def head_width(module: nn.Module) -> int | None:
    """The width of a head of queries, where a module or its config has a name for it."""
    return _said(module, "qk_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")


def _said(module: nn.Module, *attributes: str) -> int | None:
    """The first of these that a module or its config has as a whole number."""
    for source in (module, getattr(module, "config", None)):
        for attribute in attributes:
            number = getattr(source, attribute, None)
            if isinstance(number, int):
                return number
    return None
