"""Which modules of a model are attention, what kind each is, and which can be patched."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import NotPatchableError

CROSS_NAMES = frozenset({"crossattention", "cross_attn", "encoder_attn", "EncDecAttention", "cross_attention"})


# Text towers of CLIP and its kin: their modules say is_causal=False, and every call hands over True.
CAUSAL_TEXT_TOWERS = frozenset(
    f"{family}_text_model" for family in ("clip", "clipseg", "groupvit", "metaclip_2", "owlv2", "owlvit", "xclip")
)


@dataclass(frozen=True)
class AttentionModule:
    """One attention module, known by its fully qualified name.

    kind: "self" or "cross". stack: "encoder" or "decoder". layer: its number in the stack, None if it has none.
    heads: query heads, None if the module does not say.
    """

    name: str
    module: nn.Module
    kind: str
    stack: str
    layer: int | None
    heads: int | None

    @property
    def causal(self) -> bool:
        return self.kind == "self" and self.stack == "decoder"

    @property
    def window(self) -> int | None:
        """The width of the window that its rows see, None for all keys."""
        if self.kind == "cross":
            return None
        window = getattr(self.module, "sliding_window", None)
        config = getattr(self.module, "config", None)
        if not hasattr(self.module, "sliding_window") and not getattr(config, "layer_types", None):
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
    """The modules of a model that call the transformers attention interface, in module order."""
    found = []
    for name, module in model.named_modules():
        if _uses_interface(module):
            kind = _kind(name, module)
            found.append(
                AttentionModule(name, module, kind, _stack(name, module, kind), layer_number(name), _heads(module))
            )
    return found


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


def other_attention(model: nn.Module) -> list[str]:
    """Class names of attention modules that compute their own softmax, outside the interface."""
    classes = {type(module) for module in model.modules() if "ttention" in type(module).__name__}
    return sorted(
        cls.__name__
        for cls in classes
        if not issubclass(cls, PreTrainedModel)
        and not _class_uses_interface(cls)
        and _function_names(cls) & {"softmax", "scaled_dot_product_attention"}
    )


def require_attention_modules(model: nn.Module) -> list[AttentionModule]:
    """attention_modules, or NotPatchableError that names the family and what it lacks."""
    found = attention_modules(model)
    if found:
        return found
    own = other_attention(model)
    reason = f"its {', '.join(own)} computes attention itself" if own else "it has no attention module"
    raise NotPatchableError(
        f"{type(model).__name__} cannot be patched: {reason}, outside the transformers attention interface"
    )


def _uses_interface(module: nn.Module) -> bool:
    return hasattr(module, "config") and not isinstance(module, PreTrainedModel) and _class_uses_interface(type(module))


def _class_uses_interface(cls: type) -> bool:
    forward = getattr(inspect.unwrap(cls.forward), "__code__", None) if hasattr(cls, "forward") else None
    return forward is not None and bool({"ALL_ATTENTION_FUNCTIONS", "get_interface"} & set(forward.co_names))


def _function_names(cls: type) -> set[str]:
    """Every name that the methods of a class mention."""
    names: set[str] = set()
    for base in cls.__mro__:
        for member in vars(base).values():
            if inspect.isfunction(member) and base is not nn.Module:
                names |= set(inspect.unwrap(member).__code__.co_names)
    return names


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
    return "decoder" if _calls_itself_causal(module) else "encoder"


def _calls_itself_causal(module: nn.Module) -> bool:
    """What the module's calls will say; a configuration may make a decoder look both ways."""
    config = getattr(module, "config", None)
    if getattr(config, "model_type", None) in CAUSAL_TEXT_TOWERS:
        return True
    return bool(getattr(module, "is_causal", False)) and getattr(config, "is_causal", True) is not False


def layer_number(name: str) -> int | None:
    """The first number in a module's name: its layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _heads(module: nn.Module) -> int | None:
    for source in (module, getattr(module, "config", None)):
        for attribute in ("num_heads", "n_heads", "num_attention_heads"):
            heads = getattr(source, attribute, None)
            if isinstance(heads, int):
                return heads
    return None
