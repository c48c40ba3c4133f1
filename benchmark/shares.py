"""How much of the dense model's time is in what a recipe patches, and so how fast a perfect kernel could make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..patcher.binding.feed_forward import feed_forward_modules
from ..patcher.binding.modules import attention_modules
from .workload import Workload, clock


@dataclass
class Shares:
    """Shares of a phase's time (or of its FLOPs, or of the bytes it reads), between 0 and 1.

    attention: in scaled dot products, without the projections around them. feed_forward: in down-projections, the part
    that top-k feed-forward makes sparse. patched: in those of the two that the recipe patches. None where the model
    does not attend by torch's own attention.
    """

    attention: float | None
    feed_forward: float
    patched: float | None

    @property
    def ceiling(self) -> float | None:
        """How many times faster the phase would be if what is patched took no time at all."""
        return None if self.patched is None or self.patched >= 1 else 1 / (1 - self.patched)


def shares_of(work: Workload, planned: set[str]) -> dict[str, Shares]:
    """Shares of each phase, from one pass of the dense model. planned: names of the modules that are patched."""
    watch = _Watch(clock(work.tokens.device))
    with watch.on(work.model, planned):
        work.run(watch.start_phase)
    parts = [watch.phases[i + 1] for i in range(len(work.phases))]
    totals = [watch.starts[i + 1] - watch.starts[i] for i in range(len(work.phases))]
    found = {}
    for phase, part, total in zip(work.phases, parts, totals, strict=True):
        seen = part["calls"] > 0
        found[phase] = Shares(
            attention=part["attention"] / total if seen else None,
            feed_forward=part["feed-forward"] / total,
            patched=part["patched"] / total if seen else None,
        )
    return found


class _Watch(TorchFunctionMode):
    """Adds up the seconds of attention and of down-projections, phase by phase."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.now = now
        self.inside = False  # of an attention module that is planned
        self.starts: list[float] = []
        self.phases: list[dict[str, float]] = [_nothing()]
        self.entered = 0.0

    def start_phase(self) -> float:
        """In place of a clock: what comes now belongs to the next phase."""
        self.starts.append(self.now())
        self.phases.append(_nothing())
        return self.starts[-1]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        before = self.now()
        result = function(*args, **(kwargs or {}))
        self.add("attention", self.now() - before, self.inside)
        self.phases[-1]["calls"] += 1
        return result

    def add(self, what: str, seconds: float, planned: bool) -> None:
        self.phases[-1][what] += seconds
        if planned:
            self.phases[-1]["patched"] += seconds

    @contextmanager
    def on(self, model: nn.Module, planned: set[str]) -> Iterator[None]:
        """Watches a model inside the block."""
        with ExitStack() as stack:
            for target in attention_modules(model):
                if target.name in planned:
                    for handle in (
                        target.module.register_forward_pre_hook(lambda *_: self.enter(True)),
                        target.module.register_forward_hook(lambda *_: self.enter(False), always_call=True),
                    ):
                        stack.callback(handle.remove)
            for layer in feed_forward_modules(model):
                of_plan = layer.name in planned
                for handle in (
                    layer.module.register_forward_pre_hook(lambda *_: self.start()),
                    layer.module.register_forward_hook(lambda *_, of_plan=of_plan: self.stop(of_plan)),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def enter(self, inside: bool) -> None:
        self.inside = inside

    def start(self) -> None:
        self.entered = self.now()

    def stop(self, planned: bool) -> None:
        self.add("feed-forward", self.now() - self.entered, planned)


def _nothing() -> dict[str, float]:
    return {"attention": 0.0, "feed-forward": 0.0, "patched": 0.0, "calls": 0.0}
