"""Which modules of a model are alike, so that what is counted in some tells how large the others are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..patcher.binding.feed_forward import FeedForwardModule, feed_forward_modules
from ..patcher.binding.modules import AttentionModule, attention_modules, unwrapped


def module_kinds(model: nn.Module, plan: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The attention modules and feed-forward layers of a model by kind ("decoder self", "encoder feed-forward"), for
    results.json: {kind: {"modules": how many, "patched": the names of those in the plan}}."""
    planned, model = set(plan), unwrapped(model)
    modules: list[AttentionModule | FeedForwardModule] = [*attention_modules(model), *feed_forward_modules(model)]
    found: dict[str, dict[str, Any]] = {}
    for module in modules:
        kind = found.setdefault(_kind(module), {"modules": 0, "patched": []})
        kind["modules"] += 1
        kind["patched"] += [module.name] if module.name in planned else []
    return found


def _kind(module: AttentionModule | FeedForwardModule) -> str:
    window = module.window if isinstance(module, AttentionModule) else None
    return f"{module.stack} {module.kind}" + (f" in a window of {window}" if window else "")
