"""The default where nobody says which layers to patch: in deep models attention of the first ones stays dense."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .binding.modules import attention_modules, unwrapped
from .methods import AttentionMethod
from .methods.budget import Budget

# Attention of these layers stays dense in stacks of more than DEEP layers; () turns it off.
DENSE_LAYERS: tuple[int, ...] = (0, 1)
DEEP = 8


def dense_by_default(
    model: nn.Module,
    method: AttentionMethod | None,
    *,
    kind: str | None = None,
    stack: str | None = None,
    alike: bool = False,
) -> dict[str, int]:
    """The attention modules that stay dense, by name, with their layers; none for a method without a budget.

    kind, stack: of attention, as for make_plan. alike: with any method the same ones, so that methods can be compared.
    """
    if method is None or not (alike or isinstance(method, Budget)):
        return {}
    layers: dict[str, dict[str, int]] = {}
    for module in attention_modules(unwrapped(model)):
        if module.layer is not None and stack in (None, module.stack) and kind in (None, module.kind):
            layers.setdefault(module.stack, {})[module.name] = module.layer
    deep = [members for members in layers.values() if len(set(members.values())) > DEEP]
    return {name: layer for members in deep for name, layer in members.items() if layer in DENSE_LAYERS}


def ranges(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
