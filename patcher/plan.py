"""From what a person asks for (a method, some layers) to a plan: module name -> method."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ..errors import UsageError
from .binding.modules import AttentionModule
from .methods import AttentionMethod

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


def make_plan(
    modules: list[AttentionModule],
    method: AttentionMethod,
    *,
    layers: str | Iterable[int] | None = None,
    skip_layers: str | Iterable[int] | None = None,
    kind: str | None = None,
    stack: str | None = None,
) -> dict[str, AttentionMethod]:
    """The selected modules, all with one method.

    layers, skip_layers: numbers, or text such as "2-11" or "0,1,5-7"; a number counts in every stack of the model.
    kind: "self" or "cross". stack: "encoder" or "decoder". UsageError names what is out of range or leaves nothing.
    """
    check_selection(layers=None, skip_layers=None, kind=kind, stack=stack)
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
        raise UsageError("the selection leaves no attention module to patch: loosen layers, skip-layers, kind or stack")
    return plan


def _numbers(option: str, value: str | Iterable[int], known: set[int]) -> list[int]:
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


def describe_plan(plan: Mapping[str, AttentionMethod]) -> str:
    """For a title: "top-k, k = 64 in 30 modules"; several methods are joined by "and"."""
    counts = Counter(f"{method.name}, {method.describe()}" for method in plan.values())
    return " and ".join(f"{method} in {count} module{'s' * (count > 1)}" for method, count in counts.items())
