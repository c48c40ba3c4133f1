"""The candidates of `sparsify tune` as recipes, and how far they move the model on tuning data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.histogram_file import histograms_of, save_calibrated
from ..calibration.options import CalibrationOptions
from ..calibration.run import Histograms, fit_plan, fitted_plan
from ..environment import package_versions
from ..errors import SparsifyError
from ..evaluation.items import ItemSet, content_hash
from ..evaluation.tasks import Task
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods import Method
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.recipe import Plan, Recipe, load_recipe
from ..tuning.fidelity import Candidate, measure_moved
from ..tuning.ladder import Cell
from ..tuning.sensitivity import at_keep
from .calibrate import CalibrateOptions, calibrate_target
from .target import Target

CALIBRATION = "calibration"  # its directory


@dataclass(frozen=True)
class Moved:
    """On tuning data: the mean KL divergence from dense, None for a task without one, and kept / k of long rows.
    error: why neither is known."""

    kl: float | None
    kept_per_k: float | None
    error: str | None = None


@dataclass(frozen=True)
class Calibrated:
    """One calibration, from which the thresholds of all cells are read."""

    recipe: Recipe
    histograms: Histograms


def recipe_of(loaded: LoadedModel, plan: Mapping[str, Method], cell: Cell, calibrated: Calibrated | None) -> Recipe:
    """A cell as a recipe. plan: the method of every module, at any keep rate."""
    exact: Plan = {name: at_keep(plan[name], keep) for name, keep in cell.keeps.items()}
    recipe = Recipe(loaded.base, exact, versions=package_versions())
    attention = [method for method in exact.values() if isinstance(method, Budget)]
    if calibrated is None or calibrated.recipe.calibration is None or not attention:
        return recipe
    how = CalibrationOptions()
    fitted = fitted_plan(exact, how)
    record = replace(calibrated.recipe.calibration, budget=describe_kept(attention), histograms_sha256="")
    thresholds = fit_plan(fitted, calibrated.histograms, how)
    return replace(recipe, plan=fitted, thresholds=thresholds, calibration=record, before_calibration=exact)


def calibrate_once(
    loaded: LoadedModel,
    plan: Mapping[str, Method],
    keep: float,
    items: ItemSet,
    seed: int,
    directory: Path,
    advance: Callable[[int], None],
) -> Calibrated:
    """Histograms of every attention module of a plan, with all of them at one keep rate, or those of an earlier run."""
    exact: Plan = {name: at_keep(method, keep) for name, method in plan.items()}
    if (stored := _stored(directory, exact, items)) is not None:
        advance(len(items))
        return stored
    target = Target(loaded, Recipe(loaded.base, exact, versions=package_versions()), None)
    options = CalibrateOptions(samples=len(items), seed=seed)
    made = calibrate_target(target, items, options, directory=directory, advance=advance)
    save_calibrated(made.recipe, made.histograms, directory)
    made.checkpoint.remove()
    return Calibrated(made.recipe, made.histograms)


def _stored(directory: Path, exact: Plan, items: ItemSet) -> Calibrated | None:
    """The calibration of an earlier run if it is there, whole, and just this one."""
    try:
        recipe = load_recipe(directory)
        histograms = histograms_of(recipe, directory)
    except SparsifyError:
        return None
    asked = {content_hash(item) for item in items.items}
    same = recipe.before_calibration == exact and recipe.calibration is not None
    same = same and recipe.calibration is not None and set(recipe.calibration.items) == asked
    return Calibrated(recipe, histograms) if same else None


def measure_cells(
    loaded: LoadedModel, recipes: Sequence[Recipe], task: Task, advance: Callable[[int], None]
) -> list[Moved]:
    """How far each recipe moves the model on the items of a task."""
    candidates = [Candidate(recipe.plan, recipe.thresholds) for recipe in recipes]
    moved = measure_moved(loaded, candidates, task, advance)
    return [
        Moved(None, None, one.error)
        if one.error is not None
        else Moved(one.mean, one.meter.total().summary()["kept_per_k"])
        for one in moved
    ]


def choose(variants: Sequence[Sequence[tuple[Cell, Moved]]]) -> list[Cell]:
    """For each budget the cell that moves the model least on tuning data; of a task without KL the first that ran."""

    def moves(entry: tuple[Cell, Moved]) -> float:
        moved = entry[1]
        return math.inf if moved.error is not None else moved.kl or 0.0

    return [min(cells, key=moves)[0] for cells in variants]
