"""From what a person asks for (methods, some layers, exceptions) to a plan: module name -> method."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import UsageError
from .binding.feed_forward import require_feed_forward_modules
from .binding.modules import require_attention_modules, unwrapped
from .binding.patchable import PatchableModule, check_module, patchable_modules
from .methods import AttentionMethod, Method, TopKFeedForward
from .overrides import Override, apply_overrides

KINDS = ("self", "cross")
STACKS = ("encoder", "decoder")


def check_selection(*, layers: str | None, skip_layers: str | None, kind: str | None, stack: str | None) -> None:
    """UsageError for what is wrong whatever the model is, so that it can be said before loading one."""
    for name, value, choices in (("kind", kind, KINDS), ("stack", stack, STACKS)):
        if value is not None and value not in choices:
            raise UsageError(f"{name} must be {' or '.join(choices)}, not {value!r}")
    for option, text in (("layers", layers), ("skip-layers", skip_layers)):
        if text is not None:
            _parse(option, text)


def plan_model(
    model: nn.Module,
    attention: AttentionMethod | None,
    feed_forward: TopKFeedForward | None = None,
    *,
    layers: str | int | Iterable[int] | None = None,
    skip_layers: str | int | Iterable[int] | None = None,
    kind: str | None = None,
    stack: str | None = None,
    overrides: Iterable[Override] = (),
) -> dict[str, Method]:
    """The plan of a model: one method for the selected attention, one for the selected feed-forward layers, exceptions.

    None leaves attention or feed-forward dense. See make_plan for the selection and apply_overrides for the exceptions.
    Raises NotPatchableError for modules that cannot take their method, UsageError for a selection that leaves nothing.
    """
    _check_used(attention, feed_forward, layers=layers, skip_layers=skip_layers, kind=kind, stack=stack)
    model = unwrapped(model)
    plan: dict[str, Method] = {}
    if attention is not None:
        modules: list[PatchableModule] = [*require_attention_modules(model)]
        plan |= make_plan(modules, attention, layers=layers, skip_layers=skip_layers, kind=kind, stack=stack)
    if feed_forward is not None:
        modules = [*require_feed_forward_modules(model)]
        plan |= make_plan(modules, feed_forward, layers=layers, skip_layers=skip_layers, stack=stack)
    plan = apply_overrides(plan, overrides, patchable_modules(model, plan))
    if not plan:
        raise UsageError("nothing is left to patch: choose an attention method, a feed-forward method or --set")
    found = patchable_modules(model, plan)
    for name, method in plan.items():
        check_module(found[name], method)
    return plan


def _check_used(attention: object, feed_forward: object, **selection: object) -> None:
    """UsageError for a selection that selects nothing because no method was given for it."""
    for name, value in selection.items():
        idle = attention is None and (feed_forward is None or name == "kind")
        if idle and value is not None:
            what = "attention method" if name == "kind" else "attention or feed-forward method"
            raise UsageError(f"{name.replace('_', '-')} goes with an {what}, and none was chosen")


def make_plan(
    modules: Iterable[PatchableModule],
    method: Method,
    *,
    layers: str | int | Iterable[int] | None = None,
    skip_layers: str | int | Iterable[int] | None = None,
    kind: str | None = None,
    stack: str | None = None,
) -> dict[str, Method]:
    """The selected modules, all attention or all feed-forward, with one method.

    layers, skip_layers: a number, numbers, or text such as "2-11" or "0,1,5-7"; a number counts in every stack of the
    model. kind: of attention, "self" or "cross". stack: "encoder" or "decoder". UsageError names what is out of range
    or leaves nothing.
    """
    check_selection(layers=None, skip_layers=None, kind=kind, stack=stack)
    modules = list(modules)
    known = {module.layer for module in modules if module.layer is not None}
    wanted = known | {None} if layers is None else set(_numbers("layers", layers, known))
    skipped = set() if skip_layers is None else set(_numbers("skip-layers", skip_layers, known))
    plan = {
        module.name: method
        for module in modules
        if module.layer in wanted
        and module.layer not in skipped
        and kind in (None, module.kind)
        and stack in (None, module.stack)
    }
    if not plan:
        raise UsageError("the selection leaves no module to patch: loosen layers, skip-layers, kind or stack")
    return plan


def _numbers(option: str, value: str | int | Iterable[int], known: set[int]) -> list[int]:
    if isinstance(value, int):
        value = [value]
    numbers = _parse(option, value) if isinstance(value, str) else list(value)
    last = max(known, default=-1)
    if outside := [number for number in numbers if number not in known]:
        raise UsageError(f"{option}: layer {outside[0]} is out of range, the model has layers 0-{last}")
    return numbers


def _parse(option: str, text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UsageError(f"{option}: {part.strip()!r} is neither a layer nor a range such as 2-11")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise UsageError(f"{option}: the range {part.strip()} runs backwards")
        if last - first > 10_000:
            raise UsageError(f"{option}: the range {part.strip()} is longer than any model")
        numbers.extend(range(first, last + 1))
    return numbers


def describe_plan(plan: Mapping[str, Method]) -> str:
    """For a title: "top-k, k = 64 in 30 modules"; several methods are joined by "and"."""
    counts = Counter(f"{method.name}, {method.describe()}" for method in plan.values())
    return " and ".join(f"{method} in {count} module{'s' * (count > 1)}" for method, count in counts.items())
