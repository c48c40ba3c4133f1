"""What directories hold: sweeps, tuned recipes, recipes with what was measured of them, and results alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..evaluation.saved import Saved
from ..evaluation.verdict.gate import PASS, holm
from ..files import below
from .found import Accuracy, Cell, Found, Speed, largest_saving
from .reading import MALFORMED, described, model_of, number, read_accuracy, read_json, read_speed
from .recipes import EXPECTED, find_recipe

SWEEP, TUNE = "sweep.json", "tune.json"


def collect(directories: Sequence[Path]) -> list[Found]:
    """What each directory holds. UsageError for one that holds nothing to report, and for more than one model."""
    found = [_look(directory) for directory in directories]
    models = {one.model: one.directory for one in found}
    if len(models) > 1:
        (first, where), (second, other) = list(models.items())[:2]
        raise UsageError(
            f"a report is about one model: {where} is about {first[0]}, {other} about {second[0]}; make one for each"
        )
    return _corrected(found)


def _look(directory: Path) -> Found:
    # os.path also takes names that are too long, where Path raises.
    if not os.path.isdir(directory):
        raise UsageError(f"there is no directory {directory}: name {EXPECTED}")
    for place, kind in ((directory / SWEEP, "sweep"), (directory / "tune" / TUNE, "tune")):
        if os.path.lexists(place):
            return _search(directory, place, kind)
    return find_recipe(directory)


def _search(directory: Path, place: Path, kind: str) -> Found:
    search, base = read_json(place), place.parent
    notes: list[str] = []
    try:
        cells = tuple(_cell(entry, base, notes) for entry in search["cells"])
        best = search["recommended"] and str(search["recommended"]["cell"])
        others = tuple(map(str, search["recommended"].get("others", ()))) if best else ()
        sensitivity = _sensitivity(base, search.get("sensitivity"), notes)
        found = Found(kind, directory, model_of(search), cells, best, search, sensitivity, others=others)
        described(search)
        str(search["command"]), str(search["gate"]["margin"]), str(search["dataset"]["name"]), bool(search["ended"])
    except MALFORMED as error:
        raise DataError(f"{place} is not what {kind} writes: {error!r}") from None
    return replace(found, notes=tuple(notes))


def _cell(entry: dict[str, Any], base: Path, notes: list[str]) -> Cell:
    verdict, own = entry["verdict"] or {}, (entry["saved"], entry.get("also_saved"))
    accuracy: Accuracy | None = _part(read_accuracy, base, entry["results"], notes)
    speed: Speed | None = _part(read_speed, base, entry["bench"], notes)
    return Cell(
        name=str(entry["name"]),
        label=str(entry["label"]),
        chain=str(entry["chain"]),
        directory=base / str(entry["directory"]),
        decision=str(verdict.get("decision") or ""),
        reason=str(verdict.get("reason") or ""),
        error=str(entry["error"] or "") or ("" if entry["status"] == "done" else str(entry["status"])),
        accuracy=accuracy,
        speed=speed,
        saved=tuple(Saved(number(one["share"]), str(one["of"])) for one in own if one is not None),
    )


def _part(read: Any, base: Path, name: Any, notes: list[str]) -> Any:
    """What a file of a search says; None and a note where it cannot be read."""
    if name is None:
        return None
    try:
        return read(below(base, name))
    except DataError as error:
        notes.append(f"left out: {error}")
        return None


def _sensitivity(base: Path, name: Any, notes: list[str]) -> dict[str, Any] | None:
    found = _part(read_json, base, name, notes)
    if found is None:
        return None
    try:
        count = len(found["keeps"])
        errors = [[number(error) for error in module["error"]] for module in found["modules"].values()]
        whole = count > 0 and all(len(row) == count for row in errors)
        str(found["error_is"]), number(found["items"]), [number(keep) for keep in found["keeps"]]
    except MALFORMED:
        whole = False
    if not whole:
        notes.append(f"left out: {base / str(name)} is not what tune writes")
    return found if whole else None


def _corrected(found: list[Found]) -> list[Found]:
    """Searches correct their own verdicts; those of recipes get Holm's correction here, where there are several.
    A recipe passes if it does so in all of its runs."""
    places = [(i, j) for i, one in enumerate(found) if one.kind == "recipe" for j in range(len(one.cells))]
    places = [(i, j) for i, j in places if found[i].cells[j].accuracy]
    if len(places) > 1:
        verdicts = holm([one.verdict for i, j in places if (one := found[i].cells[j].accuracy)])
        for (i, j), verdict in zip(places, verdicts, strict=True):
            cells = list(found[i].cells)
            cells[j] = replace(cells[j], decision=verdict.decision, reason=verdict.reason)
            found[i] = replace(found[i], cells=tuple(cells))
    passing = [one for one in found if all(cell.decision == PASS for cell in one.cells if cell.accuracy)]
    best = largest_saving(tuple(cell for one in passing if one.kind == "recipe" for cell in one.cells))
    return [
        replace(one, recommended=best.name) if one.kind == "recipe" and best in one.cells and best else one
        for one in found
    ]
