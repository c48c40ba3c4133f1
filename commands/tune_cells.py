"""The candidates of `sparsify tune` as recipes, and how far they move the model on tuning data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..environment import package_versions
from ..evaluation.items import ItemSet
from ..evaluation.tasks import Task
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods import Method
from ..patcher.recipe import Recipe
from ..processes import Processes
from ..tuning import fidelity
from ..tuning.ladder import Cell
from ..tuning.sensitivity import at_keep
from .calibrate import CalibrateOptions
from .calibrator import CALIBRATION, Calibrator
from .tune_options import TuneOptions
from .tune_record import Candidate, Moved, TuneRecord, keeps_key

Advance = Callable[[int], None]


def recipe_of(loaded: LoadedModel, plan: Mapping[str, Method], keeps: Mapping[str, float]) -> Recipe:
    """Modules at their keep rates as a recipe of exact methods. plan: the method of every module, at any keep rate."""
    exact = {name: at_keep(plan[name], keep) for name, keep in keeps.items()}
    return Recipe(loaded.base, exact, versions=package_versions())


def make_calibrator(
    loaded: LoadedModel,
    plan: Mapping[str, Method],
    items: ItemSet,
    options: TuneOptions,
    record: TuneRecord,
    tell: Callable[[str], None],
) -> Calibrator:
    """A calibration of every attention module, all at the keep rate in the middle."""
    at = recipe_of(loaded, plan, dict.fromkeys(plan, options.middle))
    how = CalibrateOptions(len(items), options.asking.seed)
    return Calibrator(loaded, items, how, at, record.directory / CALIBRATION, record.processes, tell)


@dataclass
class Measuring:
    """Makes candidates of cells, each with what it does on the items of a task. plan: the method of every module.
    calibrator: None without thresholds."""

    loaded: LoadedModel
    plan: Mapping[str, Method]
    task: Task
    calibrator: Calibrator | None
    record: TuneRecord
    advance: Advance

    def candidates(self, cells: Sequence[Cell]) -> list[Candidate]:
        """Measured, or known from an earlier run. Thresholds that keep too much or too little of an allocation are
        fitted anew at this allocation, which is measured again."""
        exact = [recipe_of(self.loaded, self.plan, cell.keeps) for cell in cells]
        recipes = exact if self.calibrator is None else [self.calibrator.read(one) for one in exact]
        moved = self.record.moved(cells)
        if moved is not None:
            self.advance(len(self.task.items) * (1 + len(cells)) // self.record.processes.count)
            places = [place for place, one in enumerate(moved) if one.recalibrated]
            recipes = self._with_own(places, cells, exact, recipes)
        else:
            moved = measure_cells(self.loaded, recipes, self.task, self.advance, self.record.processes)
            if places := self._off(exact, moved):
                recipes = self._with_own(places, cells, exact, recipes)
                anew = [recipes[place] for place in places]
                measured = measure_cells(self.loaded, anew, self.task, lambda _: None, self.record.processes)
                for place, one in zip(places, measured, strict=True):
                    moved[place] = replace(one, recalibrated=True)
            self.record.keep_moved(cells, moved)
        return [Candidate(*parts) for parts in zip(cells, recipes, moved, strict=True)]

    def _off(self, exact: Sequence[Recipe], moved: Sequence[Moved]) -> list[int]:
        """The places of those whose thresholds keep too much or too little."""
        if self.calibrator is None:
            return []
        kept = [one.kept_per_k for one in moved]
        return [place for place, planned in enumerate(exact) if self.calibrator.is_off(planned, kept[place])]

    def _with_own(
        self, places: Sequence[int], cells: Sequence[Cell], exact: Sequence[Recipe], recipes: Sequence[Recipe]
    ) -> list[Recipe]:
        """The recipes, at some places with a calibration of their own."""
        found = list(recipes)
        if self.calibrator is None:
            return found
        for place in places:
            directory = self.record.directory / CALIBRATION / keeps_key(cells[place])[:16]
            found[place] = self.calibrator.own(exact[place], directory)
        return found


def measure_cells(
    loaded: LoadedModel,
    recipes: Sequence[Recipe],
    task: Task,
    advance: Advance,
    processes: Processes | None = None,
) -> list[Moved]:
    """How far each recipe moves the model on the items of a task. processes: those that share them."""
    candidates = [fidelity.Candidate(recipe.plan, recipe.thresholds) for recipe in recipes]
    moved = fidelity.measure_moved(loaded, candidates, task, advance, processes)
    return [
        Moved(None, None, one.error)
        if one.error is not None
        else Moved(one.mean, one.meter.total().summary()["kept_per_k"])
        for one in moved
    ]


def choose(variants: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """For each budget the one that moves the model least on tuning data; of a task without KL the first that ran."""

    def moves(one: Candidate) -> float:
        return math.inf if one.moved.error is not None else one.moved.kl or 0.0

    return [min(candidates, key=moves) for candidates in variants]
