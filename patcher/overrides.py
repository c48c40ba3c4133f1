"""Exceptions to a plan for single modules, as a person types them: PATTERN=METHOD,OPTION=VALUE,..."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import UsageError
from .binding.feed_forward import FeedForwardModule
from .binding.patchable import PatchableModule
from .methods import METHODS, Method, TopKFeedForward, method_from_dict
from .methods.budget import Budget
from .methods.compensation import DEFAULT_COMPENSATION

DENSE = "none"
FORM = re.compile(r"(?P<pattern>.+?)=(?P<method>[a-z-]+)(?P<options>(?:,[\w-]+=[^,=]+)*)")


@dataclass(frozen=True)
class Override:
    """What the modules that a pattern matches get: a method, or None to stay dense.

    pattern: a module's full name, or "re:" and a regular expression that matches the whole name.
    """

    pattern: str
    method: Method | None

    def matches(self, name: str) -> bool:
        """Whether a module of this name is meant."""
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], name) is not None
        return name == self.pattern


def parse_override(text: str) -> Override:
    """`re:encoder\\..*=clustered,clusters=100` as data; UsageError says what is wrong with it."""
    match = FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"--set {text!r} is not PATTERN=METHOD or PATTERN=METHOD,OPTION=VALUE,...")
    pattern, name = match["pattern"], match["method"]
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise UsageError(f"--set {text!r}: {pattern[3:]!r} is no regular expression: {error}") from None
    pairs = [part.split("=") for part in match["options"].split(",")[1:]]
    options = {name.replace("-", "_"): value for name, value in pairs}
    if len(options) < len(pairs):
        raise UsageError(f"--set {text!r} gives an option twice")
    if name == DENSE:
        if options:
            raise UsageError(f"--set {text!r}: {DENSE} leaves a module dense and has no options")
        return Override(pattern, None)
    if name not in METHODS:
        raise UsageError(f"--set {text!r}: unknown method {name!r}: choose one of {', '.join(METHODS)} or {DENSE}")
    values = {option: _value(value) for option, value in options.items()}
    if issubclass(METHODS[name], Budget):
        values.setdefault("compensation", DEFAULT_COMPENSATION)
    try:
        return Override(pattern, method_from_dict({"method": name, **values}))
    except UsageError as error:
        raise UsageError(f"--set {text!r}: {error}") from None


def apply_overrides(
    plan: Mapping[str, Method], overrides: Iterable[Override], found: Mapping[str, PatchableModule]
) -> dict[str, Method]:
    """The plan with the overrides applied one after the other, in the model's module order.

    found: every module that can be patched, by name. A method reaches the matching modules that it is for: attention
    or feed-forward. UsageError for an override that reaches none.
    """
    changed = dict(plan)
    for override in overrides:
        matching = [target for name, target in found.items() if override.matches(name)]
        if not matching:
            close = get_close_matches(override.pattern.removeprefix("re:"), found, n=1, cutoff=0) or ["none"]
            raise UsageError(
                f"--set: no module that can be patched matches {override.pattern!r}; there is, for example, {close[0]}"
            )
        if override.method is None:
            for target in matching:
                changed.pop(target.name, None)
            continue
        for_feed_forward = isinstance(override.method, TopKFeedForward)
        reached = [target for target in matching if isinstance(target, FeedForwardModule) == for_feed_forward]
        if not reached:
            raise UsageError(
                f"--set: {override.pattern!r} matches no {'feed-forward layer' if for_feed_forward else 'attention'}, "
                f"which is what {override.method.name} is for"
            )
        changed.update({target.name: override.method for target in reached})
    return {name: changed[name] for name in found if name in changed}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
