"""The recipe of every cell: planned, and for top-theta with thresholds that one calibration gives for all budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..calibration.check import measure_kept
from ..calibration.checkpoint import PREFIX as CHECKPOINTS
from ..calibration.histogram_file import save_calibrated
from ..calibration.options import CalibrationOptions
from ..calibration.run import fit_plan
from ..commands.calibrate import Calibrated, CalibrateOptions, calibrate_target
from ..commands.patch import Planned, plan_recipe, save
from ..commands.push import settle_recipe
from ..commands.refit import Source, measured_on, read_source
from ..commands.target import Target
from ..errors import SparsifyError
from ..evaluation.items import ItemSet
from ..evaluation.tasks import task_for
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.recipe import Plan, Recipe, is_recipe, load_recipe
from ..processes import Processes
from .grid import Cell

OFF = 0.1  # thresholds that keep so much more or less than k are calibrated anew


@dataclass(frozen=True)
class Fitted:
    """A cell's recipe. kept_per_k: measured on items that calibration has not seen; None without thresholds.
    recalibrated: whether thresholds were fitted at this budget because those from another one kept too much or too
    little. made: that calibration, until it is written."""

    recipe: Recipe
    kept_per_k: float | None = None
    recalibrated: bool = False
    made: Calibrated | None = None


def plan_cells(loaded: LoadedModel, cells: Sequence[Cell]) -> tuple[dict[str, Planned], dict[str, SparsifyError]]:
    """The plan of each cell, by name, and the cells that the model cannot take with the reason. By
    default all of them leave the same attention dense, so that they save shares of the same modules."""
    planned, refused = {}, {}
    for cell in cells:
        try:
            planned[cell.name] = plan_recipe(loaded, cell.wanted, alike=True)
        except SparsifyError as error:
            refused[cell.name] = error
    return planned, refused


def read_cell(directory: Path, planned: Planned) -> Recipe | None:
    """The recipe that an earlier run of the same sweep left, if it is whole and has this plan."""
    if not is_recipe(directory):
        return None
    try:
        found = load_recipe(directory)
        _tidy(directory, found)
    except (SparsifyError, OSError):
        return None
    return found if found.plan == planned.recipe.plan else None


def write_cell(fitted: Fitted, planned: Planned, directory: Path) -> Fitted:
    """Writes a cell's recipe, with the histograms that are its own. SparsifyError if that fails."""
    if fitted.made is None:
        save(replace(planned, recipe=fitted.recipe), directory)
        return fitted
    recipe = _write_calibrated(fitted.made, directory)
    return replace(fitted, recipe=recipe, made=None)


@dataclass
class Calibrator:
    """Thresholds for the plans of a sweep, all read from one calibration. at: the recipe that is calibrated.
    directory: where to."""

    loaded: LoadedModel
    items: ItemSet
    options: CalibrateOptions
    at: Recipe
    directory: Path
    processes: Processes
    tell: Callable[[str], None]
    _source: Source | None = field(default=None, init=False)
    _made: Calibrated | None = field(default=None, init=False)

    def calibrate(self, advance: Callable[[int], None]) -> None:
        """Calibrates, or takes what an earlier run left. advance: called with the number of samples done. SparsifyError
        if that cannot be done."""
        self._source = self.processes.in_turn(self._earlier)  # the first one finishes what a stopped writer left
        if self._source is not None:
            advance(min(self.options.samples, len(self.items)) // self.processes.count)
        else:
            self._made = self._calibrated(self.at, self.directory, advance)
            record = self._made.recipe.calibration
            if record is not None:
                self._source = Source(self.directory, self._made.recipe, record, self._made.histograms)

    def write(self) -> None:
        """Writes what calibrate made. SparsifyError if that fails."""
        if self._made is not None and self.processes.is_main:
            _write_calibrated(self._made, self.directory)

    def fit(self, planned: Recipe, directory: Path) -> Fitted:
        """A cell's recipe with thresholds. directory: where it will be.

        A cell none of whose rows is longer than its budget has none: it uses exact top-k. Raises what calibration
        raises.
        """
        if self._source is None:
            raise SparsifyError("nothing was calibrated")
        recipe = at_budget(self._source, planned)
        kept = self._kept(recipe)
        if kept is None or abs(kept - 1) <= OFF or planned.plan == self._source.recipe.plan:
            return Fitted(recipe, kept)
        self.tell(f"{describe_kept(_budgets(planned.plan))} keeps {kept:.2f} x k: calibrating there too")
        made = self._calibrated(planned, directory, None)
        return Fitted(made.recipe, self._kept(made.recipe), recalibrated=True, made=made)

    def _earlier(self) -> Source | None:
        if not is_recipe(self.directory):
            return None
        try:
            found = read_source(self.directory)
            _tidy(self.directory, found.recipe)
        except (SparsifyError, OSError):
            return None
        return found if found.recipe.plan == self.at.plan else None

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

    def _kept(self, recipe: Recipe) -> float | None:
        """Kept / k of rows longer than k on a few items, held out from calibration if there are such."""
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


def at_budget(source: Source, recipe: Recipe) -> Recipe:
    """A recipe of uncalibrated top-theta with thresholds read from the histograms of a calibration at another budget;
    as it is where no row that was counted is longer than its own."""
    thresholds = fit_plan(recipe.plan, source.histograms, CalibrationOptions())
    if not thresholds:
        return recipe
    budget, at = describe_kept(_budgets(recipe.plan)), source.calibrated_at
    record = replace(
        source.record,
        budget=budget if budget == at else f"{budget} (calibrated at {at})",
        histograms_sha256="",  # they stay where they are
    )
    return replace(recipe, thresholds=thresholds, calibration=record, before_calibration=recipe.plan)


def _tidy(directory: Path, recipe: Recipe) -> None:
    """Finishes what a writer left that was stopped when its recipe counted already."""
    settle_recipe(directory, recipe)
    for checkpoint in directory.glob(f"{CHECKPOINTS}*"):
        checkpoint.unlink(missing_ok=True)


def _write_calibrated(made: Calibrated, directory: Path) -> Recipe:
    recipe = save_calibrated(made.recipe, made.histograms, directory)
    made.checkpoint.remove()
    return recipe


def _budgets(plan: Plan) -> list[Budget]:
    return [method for method in plan.values() if isinstance(method, Budget)]
