"""One calibration, from which the thresholds of many recipes of one model are read; see sweep and tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..calibration.check import measure_kept
from ..calibration.checkpoint import PREFIX as CHECKPOINTS
from ..calibration.histogram_file import save_calibrated
from ..calibration.options import CalibrationOptions
from ..calibration.run import fit_plan, fitted_plan
from ..errors import SparsifyError
from ..evaluation.items import ItemSet
from ..evaluation.tasks import task_for
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.recipe import Plan, Recipe, is_recipe
from ..processes import Processes
from .calibrate import Calibrated, CalibrateOptions, calibrate_target
from .push import settle_recipe
from .refit import Source, measured_on, read_source
from .target import Target

CALIBRATION = "calibration"  # its directory in that of a sweep or a tuning
OFF = 0.1  # thresholds that keep so much more or less than k are calibrated anew


@dataclass
class Calibrator:
    """Thresholds for plans of top-k or top-theta, all read from one calibration. at: the recipe that is calibrated.
    directory: where to. options: how, and on how many of the items."""

    loaded: LoadedModel
    items: ItemSet
    options: CalibrateOptions
    at: Recipe
    directory: Path
    processes: Processes
    tell: Callable[[str], None]
    _source: Source | None = field(default=None, init=False)
    _made: Calibrated | None = field(default=None, init=False)

    @property
    def samples(self) -> int:
        """Of one calibration."""
        return min(self.options.samples, len(self.items))

    def calibrate(self, advance: Callable[[int], None]) -> None:
        """Calibrates, or takes what an earlier run left. advance: called with the number of samples done. SparsifyError
        if that cannot be done."""
        # The first process finishes what a stopped writer left.
        self._source = self.processes.in_turn(lambda: _earlier(self.directory, self.at))
        if self._source is not None:
            advance(self.samples // self.processes.count)
            return
        self._made = self._calibrated(self.at, self.directory, advance)
        record = self._made.recipe.calibration
        if record is not None:
            self._source = Source(self.directory, self._made.recipe, record, self._made.histograms)

    def write(self) -> None:
        """Writes what calibrate made. SparsifyError if that fails."""
        if self._made is not None and self.processes.is_main:
            write_calibrated(self._made, self.directory)

    def read(self, planned: Recipe) -> Recipe:
        """A recipe with thresholds for its plan; as it is, exact top-k, where no row that was counted is longer than
        its budget. SparsifyError if nothing was calibrated."""
        if self._source is None:
            raise SparsifyError("nothing was calibrated")
        return at_budget(self._source, planned)

    def is_off(self, planned: Recipe, kept: float | None) -> bool:
        """Whether thresholds from another budget keep so much more or less than k that a plan needs a calibration of
        its own. kept: kept / k, measured; None where there are no thresholds."""
        known = self._source is not None and fitted(planned.plan) == self._source.recipe.plan
        return kept is not None and abs(kept - 1) > OFF and not known

    def anew(self, planned: Recipe, directory: Path) -> Calibrated:
        """A calibration at a recipe's own budgets, not yet written. directory: where it will be. Raises what
        calibration raises."""
        return self._calibrated(planned, directory, None)

    def own(self, planned: Recipe, directory: Path) -> Recipe:
        """A recipe calibrated at its own budgets and written to a directory, or what an earlier run left there. Raises
        what calibration raises; SparsifyError if it cannot be written."""
        found = self.processes.in_turn(lambda: _earlier(directory, planned))
        if found is not None:
            return found.recipe
        made = self.anew(planned, directory)
        return write_calibrated(made, directory) if self.processes.is_main else made.recipe

    def kept(self, recipe: Recipe) -> float | None:
        """Kept / k of rows longer than k on a few items, held out from calibration if there are such; None without
        thresholds."""
        if recipe.calibration is None:
            return None
        kept = None
        with self.processes.together():
            if self.processes.is_main:
                chosen = measured_on(self.items, recipe.calibration)
                task = task_for(self.loaded, chosen)
                inputs = (one for item in chosen.items for one in task.calibration_inputs(item))
                meter = measure_kept(self.loaded.model, recipe.plan, recipe.thresholds, inputs)
                kept = meter.total().summary()["kept_per_k"]
        return self.processes.gather(kept)[0]

    def _calibrated(self, recipe: Recipe, directory: Path, advance: Callable[[int], None] | None) -> Calibrated:
        with self.processes.together():
            return calibrate_target(
                Target(self.loaded, recipe, None),
                self.items,
                self.options,
                directory=directory,
                processes=self.processes,
                advance=advance,
                tell=self.tell,
            )


def at_budget(source: Source, recipe: Recipe) -> Recipe:
    """A recipe of top-k or uncalibrated top-theta with thresholds read from the histograms of a calibration at other
    budgets; as it is where no row that was counted is longer than its own."""
    plan = fitted(recipe.plan)
    thresholds = fit_plan(plan, source.histograms, CalibrationOptions())
    if not thresholds:
        return recipe
    budget, at = describe_budgets(plan), source.calibrated_at
    record = replace(
        source.record,
        budget=budget if budget == at else f"{budget} (calibrated at {at})",
        histograms_sha256="",  # they stay where they are
    )
    return replace(recipe, plan=plan, thresholds=thresholds, calibration=record, before_calibration=recipe.plan)


def fitted(plan: Plan) -> Plan:
    """A plan as calibration leaves it, with top-theta for top-k."""
    return fitted_plan(plan, CalibrationOptions())


def describe_budgets(plan: Plan) -> str:
    """Of attention: "k = 64"."""
    return describe_kept(method for method in plan.values() if isinstance(method, Budget))


def describe_calibration(items: ItemSet, samples: int, seed: int, at: str) -> dict[str, Any]:
    """On what and at which budget the recipe in CALIBRATION is calibrated, for JSON."""
    return {
        "dataset": items.name,
        "split": items.split,
        "samples": samples,
        "seed": seed,
        "at": at,
        "recipe": CALIBRATION,
    }


def _earlier(directory: Path, planned: Recipe) -> Source | None:
    if not is_recipe(directory):
        return None
    try:
        found = read_source(directory)
        tidy(directory, found.recipe)
    except (SparsifyError, OSError):
        return None
    return found if found.recipe.plan == fitted(planned.plan) else None


def tidy(directory: Path, recipe: Recipe) -> None:
    """Finishes what a writer left that was stopped when its recipe counted already."""
    settle_recipe(directory, recipe)
    for checkpoint in directory.glob(f"{CHECKPOINTS}*"):
        checkpoint.unlink(missing_ok=True)


def write_calibrated(made: Calibrated, directory: Path) -> Recipe:
    """Writes a recipe with its histograms, and returns it as it is written. SparsifyError if that fails."""
    recipe = save_calibrated(made.recipe, made.histograms, directory)
    made.checkpoint.remove()
    return recipe
