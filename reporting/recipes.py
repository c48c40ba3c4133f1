"""What was measured of a recipe as it is now: its newest evaluation on each data set and its newest benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError, UsageError
from ..evaluation.journal import RESULTS
from ..evaluation.of_recipe import evaluated, timed
from ..patcher.recipe import Recipe, is_recipe, load_recipe
from .found import Accuracy, Cell, Found, Speed
from .reading import BENCH, model_of, read_accuracy, read_speed

EXPECTED = (
    "a sweep directory, a tuned recipe, a recipe with eval/ or bench/ in it, or a directory with results.json or "
    "bench.json"
)
Run = TypeVar("Run", Accuracy, Speed)


def find_recipe(directory: Path) -> Found:
    """A cell for every data set and margin; benchmarks without an evaluation share a cell of their own. DataError for a
    damaged recipe, UsageError where nothing was measured."""
    notes: list[str] = []
    recipe = load_recipe(directory) if is_recipe(directory) else None
    accuracies = _all(read_accuracy, [directory / RESULTS, *sorted(directory.glob(f"eval/*/{RESULTS}"))], notes)
    speeds = _all(read_speed, [directory / BENCH, *sorted(directory.glob(f"bench/*/{BENCH}"))], notes)
    accuracies = _newest(_present(accuracies, recipe, evaluated, directory, notes), directory, notes)
    speeds = _present(speeds, recipe, timed, directory, notes)
    if not accuracies and not speeds:
        raise UsageError("; ".join([f"{directory} holds nothing to report: name {EXPECTED}", *notes]))
    name, newest = directory.resolve().name, speeds[-1] if speeds else None
    cells = [
        Cell(
            name=f"{name}: {one.path.parent.name}",
            label=name if len(accuracies) == 1 else f"{name}, {one.data}",
            chain=one.method,
            directory=directory,
            decision=one.verdict.decision,
            reason=one.verdict.reason,
            accuracy=one,
            speed=newest if newest and newest.record["method"] == one.method else None,
            saved=one.saved,
        )
        for one in accuracies
    ]
    if newest and not any(cell.speed for cell in cells):
        cells.append(Cell(f"{name}: bench", name, newest.record["method"], directory, speed=newest))
    measured: list[Accuracy | Speed] = [*accuracies, *speeds]
    return Found("recipe", directory, model_of(measured[0].record), tuple(cells), notes=tuple(notes))


def _all(read: Callable[[Path], Run], paths: Sequence[Path], notes: list[str]) -> list[Run]:
    found = []
    for path in paths:
        if os.path.lexists(path):
            try:
                found.append(read(path))
            except DataError as error:
                notes.append(f"left out: {error}")
    return found


def _present(
    runs: list[Run],
    recipe: Recipe | None,
    is_of: Callable[[Recipe, dict[str, Any]], bool],
    directory: Path,
    notes: list[str],
) -> list[Run]:
    """Those of the plan and calibration that the recipe has now; all of them where there is no recipe."""
    if recipe is None:
        return runs
    found = [run for run in runs if is_of(recipe, run.record)]
    if old := len(runs) - len(found):
        what = "evaluation" if isinstance(runs[0], Accuracy) else "benchmark"
        notes.append(f"left out: {old} {what}{'s' * (old != 1)} of {directory}, not of the plan it has now")
    return found


def _newest(runs: list[Accuracy], directory: Path, notes: list[str]) -> list[Accuracy]:
    """Of those on the same data with the same margin the one that was written last."""
    last: dict[tuple[str, str], Accuracy] = {}
    for run in sorted(runs, key=lambda run: run.path.stat().st_mtime):
        last[run.data, run.verdict.margin] = run
    if old := len(runs) - len(last):
        notes.append(
            f"left out: {old} older evaluation{'s' * (old != 1)} of {directory}, on the same data with the same margin"
        )
    paths = {run.path for run in last.values()}
    return [run for run in runs if run.path in paths]
