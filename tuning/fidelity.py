"""How far candidates move the model on tuning data: KL divergence from dense, along what the dense model wrote."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import FAILURES, SparsifyError, one_sentence
from ..evaluation.run import fitting_items
from ..evaluation.tasks import Task
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.patching import Patch, prepare_patch
from ..patcher.meter import Meter
from ..patcher.methods import Method
from ..patcher.outputs import finite_outputs
from ..patcher.thresholds import ModuleThresholds
from ..processes import Processes


@dataclass(frozen=True)
class Candidate:
    """A plan with its thresholds."""

    plan: Mapping[str, Method]
    thresholds: Mapping[str, ModuleThresholds] | None = None


@dataclass
class Moved:
    """Of one candidate. kl: of each item, in the task's unit; empty where the task has none. meter: what was kept.
    error: why it was given up; what it holds beside that is not whole then."""

    kl: list[float] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """The mean over items."""
        return statistics.fmean(self.kl) if self.kl else None


def measure_moved(
    loaded: LoadedModel,
    candidates: Sequence[Candidate],
    task: Task,
    advance: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> list[Moved]:
    """Every candidate on the items of a task; nothing is generated but by the dense model.

    advance: called with the number of passes over items done, one for the dense model and one for each candidate.
    processes: those that share the batches; all of them get the same. The model must not be patched, and is left dense.
    A candidate that fails, or whose outputs are not finite, is given up and the others go on. DataError if no item can
    be read; SparsifyError if the dense model's outputs are not finite.
    """
    processes = processes or Processes()
    patches = [prepare_patch(loaded.model, one.plan, one.thresholds) for one in candidates]
    moved = [Moved() for _ in candidates]
    items = task.order(fitting_items(task))
    batches = [items[start : start + task.batch_size] for start in range(0, len(items), task.batch_size)]
    with processes.together(), torch.inference_mode():
        for batch in processes.share(batches):
            for count in _batch(loaded.model, task, batch, patches, moved):
                if advance is not None:
                    advance(count)
    return [_merged(parts) for parts in zip(*processes.gather(moved), strict=True)]


def _merged(parts: Sequence[Moved]) -> Moved:
    """What the processes found of one candidate."""
    whole = Moved(error=next((part.error for part in parts if part.error is not None), None))
    for part in parts:
        whole.kl += part.kl
        whole.meter.merge(part.meter)
    return whole


def _batch(
    model: nn.Module, task: Task, batch: Sequence[Any], patches: Sequence[Patch], moved: Sequence[Moved]
) -> Iterator[int]:
    # A task whose distances come from passes of their own needs no patched answers for them.
    observes = type(task).observe is not Task.observe
    with finite_outputs(model):
        dense = task.predict(batch)
        observed = task.observe(batch, dense)
    yield len(batch)
    for patch, found in zip(patches, moved, strict=True):
        if found.error is None:
            try:
                with patch.resumed(), patch.metered(found.meter), finite_outputs(model, patched=True):
                    patched = dense if observes else task.predict(batch)
                    seen = task.observe(batch, dense)
                distances = task.compare(batch, dense, patched, (observed, seen))
                found.kl += [_finite(distance["kl"]) for distance in distances if "kl" in distance]
            except FAILURES as error:
                found.error = one_sentence(error)
        yield len(batch)


def _finite(kl: float) -> float:
    if not math.isfinite(kl):
        raise SparsifyError(f"its KL divergence from dense is {kl}")
    return kl
