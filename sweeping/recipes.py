"""The recipe of every cell: planned, and for top-theta with thresholds that one calibration gives for all budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..commands.calibrate import Calibrated
from ..commands.calibrator import Calibrator, describe_budgets, tidy, write_calibrated
from ..commands.patch import Planned, plan_recipe, save
from ..errors import SparsifyError
from ..patcher.binding.loading import LoadedModel
from ..patcher.recipe import Recipe, is_recipe, load_recipe
from .grid import Cell


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
        tidy(directory, found)
    except (SparsifyError, OSError):
        return None
    return found if found.plan == planned.recipe.plan else None


def write_cell(fitted: Fitted, planned: Planned, directory: Path) -> Fitted:
    """Writes a cell's recipe, with the histograms that are its own. SparsifyError if that fails."""
    if fitted.made is None:
        save(replace(planned, recipe=fitted.recipe), directory)
        return fitted
    recipe = write_calibrated(fitted.made, directory)
    return replace(fitted, recipe=recipe, made=None)


def fit_cell(calibrator: Calibrator, planned: Recipe, directory: Path) -> Fitted:
    """A cell's recipe with thresholds. directory: where it will be.

    A cell none of whose rows is longer than its budget has none: it uses exact top-k. Raises what calibration
    raises.
    """
    recipe = calibrator.read(planned)
    kept = calibrator.kept(recipe)
    if not calibrator.is_off(planned, kept):
        return Fitted(recipe, kept)
    calibrator.tell(f"{describe_budgets(planned.plan)} keeps {kept:.2f} x k: calibrating there too")
    made = calibrator.anew(planned, directory)
    return Fitted(made.recipe, calibrator.kept(made.recipe), recalibrated=True, made=made)
