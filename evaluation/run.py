"""The evaluation: the unpatched and the patched models on the same items."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import FAILURES, DataError, SparsifyError, one_sentence
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.patching import Patch, prepare_patch
from ..patcher.meter import Meter
from ..patcher.methods import Method
from ..patcher.outputs import finite_outputs
from ..patcher.thresholds import ModuleThresholds
from ..processes import Processes
from .dense_cache import DenseCache, cache_name
from .journal import Journal
from .tasks.base import TOO_LONG, Answer, Record, Task

Advance = Callable[[int], None]
Lost = dict[int, str]  # a contender's place among all -> why it could not go on


@dataclass(frozen=True)
class Contender:
    """A way to patch the model, and the journal of its run."""

    plan: Mapping[str, Method]
    thresholds: Mapping[str, ModuleThresholds] | None = None
    journal: Journal = field(default_factory=Journal)


@dataclass
class Evaluation:
    """Everything that was measured of one contender. left_out: reason -> number of items."""

    task: Task
    first_input: str
    records: list[Record]
    left_out: Counter[str]
    journal: Journal


def evaluate(
    loaded: LoadedModel,
    contenders: Sequence[Contender],
    task: Task,
    *,
    cache: DenseCache | None = None,
    processes: Processes | None = None,
    advance: Advance | None = None,
    lost: Lost | None = None,
) -> list[Evaluation]:
    """Has the dense model answer every item of a task once, and every contender, batch by batch in turn.

    cache: what the dense model answered before. processes: those that share the batches; on all but the first the
    records of the others are missing. advance: called with the number of items that contenders have done. lost: if
    given, a contender that fails is put there, the others go on, and it has no evaluation; else its error ends all. The
    model must not be patched, and is left dense. Raises what fitting_items raises.
    """
    processes, fitting = processes or Processes(), fitting_items(task)
    left_out = _left_out(task)
    if advance is not None and left_out and processes.is_main:
        advance(left_out.total() * len(contenders))
    if all(contender.journal.ended for contender in contenders):
        return [_evaluation(task, fitting, left_out, contender, processes) for contender in contenders]
    run = _Run(loaded, task, list(contenders), cache, processes.rank, lost)
    try:
        with torch.inference_mode():
            for index, batch in processes.share(list(enumerate(_batches(task, fitting)))):
                run.batch(index, batch, advance or (lambda _: None))
    finally:
        run.close()
    if lost is not None:
        for others in processes.gather(lost):
            lost.update(others)
    return [
        _evaluation(task, fitting, left_out, contender, processes)
        for place, contender in enumerate(contenders)
        if place not in (lost or {})
    ]


def fitting_items(task: Task) -> list[Any]:
    """The items of a task that its model can read.

    DataError if there is none, and what is wrong with the options or the items, before anything is run or written.
    """
    task.check()
    fitting = [item for item in task.items.items if task.unfit(item) is None]
    if fitting:
        return fitting
    left_out = _left_out(task)
    if set(left_out) == {TOO_LONG}:
        raise DataError(f"no item of {task.items.name} fits what the model can read at once")
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    raise DataError(f"no item of {task.items.name} can be evaluated: {reasons}")


def _left_out(task: Task) -> Counter[str]:
    return Counter(reason for item in task.items.items if (reason := task.unfit(item)) is not None)


def _evaluation(
    task: Task, items: Sequence[Any], left_out: Counter[str], contender: Contender, processes: Processes
) -> Evaluation:
    journal = contender.journal
    journal.merge(processes)
    records = [Record.from_dict(item, journal.records[item.id]) for item in items if item.id in journal.records]
    if processes.is_main:
        if len(records) != len(items):
            raise SparsifyError(f"{len(items) - len(records)} items have no prediction: start again with --no-cache")
        task.finish(records)
    return Evaluation(task, task.first_input(items[0]), records, left_out, journal)


def _batches(task: Task, items: Sequence[Any]) -> Iterator[list[Any]]:
    """Always the same ones, whatever was done before and by how many processes."""
    ordered = task.order(items)
    for start in range(0, len(ordered), task.batch_size):
        yield ordered[start : start + task.batch_size]


class _Run:
    """The dense model and the contenders, ready to take batches."""

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        contenders: list[Contender],
        cache: DenseCache | None,
        rank: int,
        lost: Lost | None,
    ) -> None:
        self.model, self.task, self.contenders, self.rank, self.lost = loaded.model, task, contenders, rank, lost
        # What only `observe` finds out is too large to keep.
        self.cache = cache if task.counted_when == "predict" else None
        self.patches = [prepare_patch(loaded.model, contender.plan, contender.thresholds) for contender in contenders]

    def close(self) -> None:
        """Leaves the model dense, also after an error inside a patched pass, and logs which kernels ran."""
        for patch in self.patches:
            if patch.active:
                patch.deactivate()
            patch.log_paths()

    def batch(self, index: int, batch: Sequence[Any], advance: Advance) -> None:
        """Runs every contender that has not done this batch, and the dense model if there is one."""
        pending = [
            place
            for place, contender in enumerate(self.contenders)
            if not contender.journal.has(index) and place not in (self.lost or {})
        ]
        advance(len(batch) * (len(self.contenders) - len(pending)))
        if not pending:
            return
        seconds = {"dense": 0.0, "patched": 0.0}
        with finite_outputs(self.model):
            dense, cached = self._dense(batch, seconds)
            observed = self._timed(lambda: self.task.observe(batch, dense), seconds, "dense", "observe")
        for place in pending:
            meter, spent = Meter(), dict(seconds)
            try:
                answers, distances = self._patched(self.patches[place], batch, dense, observed, meter, spent)
            except FAILURES as error:
                if self.lost is None:
                    raise
                self.lost[place] = one_sentence(error)
            else:
                parts = zip(batch, dense, answers, distances, strict=True)
                records = [self._record(*part) for part in parts]
                self.contenders[place].journal.append(index, records, meter, spent, cached, self.rank)
            advance(len(batch))

    def _patched(
        self,
        patch: Patch,
        batch: Sequence[Any],
        dense: Sequence[Answer],
        observed: Any,
        meter: Meter,
        seconds: dict[str, float],
    ) -> tuple[list[Answer], list[dict[str, Any]]]:
        """The answers of one contender and how far it is from dense."""
        with patch.resumed(), finite_outputs(self.model, patched=True):
            with self._counting(patch, meter, "predict"):
                answers = self._timed(lambda: self.task.predict(batch, meter), seconds, "patched", "predict")
            with self._counting(patch, meter, "observe"):
                seen = self._timed(lambda: self.task.observe(batch, dense), seconds, "patched", "observe")
        return answers, self.task.compare(batch, dense, answers, (observed, seen))

    def _record(self, item: Any, dense: Answer, patched: Answer, distance: dict[str, Any]) -> Record:
        return Record(item, *self.task.read(item), dict(dense), patched, distance)

    def _dense(self, batch: Sequence[Any], seconds: dict[str, float]) -> tuple[list[Answer], int]:
        """The dense answers, and how many of them were known. The whole batch runs if one of them is not."""
        known = self.cache.answers if self.cache else {}
        names = [cache_name(self.task.input_ids(item) or [], item) for item in batch]
        if all(name in known for name in names):
            return [known[name] for name in names], len(batch)
        answers = self._timed(lambda: self.task.predict(batch), seconds, "dense", "predict")
        if self.cache is not None:
            self.cache.add(dict(zip(names, answers, strict=True)))
        return answers, 0

    def _counting(self, patch: Patch, meter: Meter, step: str) -> Any:
        return patch.metered(meter) if self.task.counted_when == step else nullcontext()

    def _timed(self, run: Callable[[], Any], seconds: dict[str, float], arm: str, step: str) -> Any:
        """What `run` returns; it is timed if this is the step that does the task's work.

        `run` returns when the work is done, not when it is queued: on a GPU, with its results on the CPU.
        """
        start = time.perf_counter()
        result = run()
        if self.task.counted_when == step:
            seconds[arm] += time.perf_counter() - start
        return result
