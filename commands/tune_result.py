"""What a tuning comes to: what candidates save, how the two chains compare, and the recipe that is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..calibration.histogram_file import HISTOGRAMS_FILE
from ..evaluation.journal import PREDICTIONS, RESULTS
from ..evaluation.saved import SHARES, weighted
from ..evaluation.verdict.gate import PASS
from ..files import cannot_write, write_file
from ..patcher.recipe import RECIPE_FILE, THRESHOLDS_FILE, Recipe, save_recipe
from ..tuning.ladder import UNITS, Cell, weights_of
from ..tuning.sensitivity import SensitivityMap


def kept_share(results: dict[str, Any], cell: Cell, found: SensitivityMap, goal: str) -> float:
    """What a cell kept in the evaluation, as a share of what all modules of the map have when they are dense.

    Modules are weighed as on tuning data; time was measured there alone.
    """
    if goal == "latency":
        return cell.cost
    keys = tuple(SHARES) if goal == "kept" else ("decode_v_rows_share",)
    return weighted(results["kept"]["modules"], keys, weights_of(found, goal))


def comparison(tuned: dict[str, Any] | None, uniform: dict[str, Any] | None, unit: str) -> dict[str, Any]:
    """What the best tuned and the best uniform candidate that pass save, side by side, for JSON. unit: what the
    shares are of."""
    saved = [None if one is None else one["saved"]["share"] for one in (tuned, uniform)]
    kept = [None if share is None else f"{100 * (1 - share):.1f} %" for share in saved]
    rate = "" if uniform is None else f" (keep = {uniform['setting']['keep']:g})"
    verb = "takes" if unit == UNITS["latency"] else "keeps"
    if tuned is None and uniform is None:
        sentence = "neither a tuned allocation nor a uniform keep passes"
    elif uniform is None:
        sentence = f"tuned {verb} {kept[0]} of {unit} at PASS, and no uniform keep passes"
    elif tuned is None:
        sentence = f"no tuned allocation passes, and the best uniform keep {verb} {kept[1]} of {unit}{rate}"
    else:
        sentence = f"tuned {verb} {kept[0]} of {unit} at PASS, the best uniform keep {kept[1]}{rate}"
    return {
        "tuned": None if tuned is None else tuned["name"],
        "uniform": None if uniform is None else uniform["name"],
        "saved_tuned": saved[0],
        "saved_uniform": saved[1],
        "sentence": sentence,
    }


def write_recommended(directory: Path, inside: Path, content: dict[str, Any], recipes: Mapping[str, Recipe]) -> None:
    """Puts the recommended recipe with its results into the directory. Without one, that of an earlier verdict goes:
    what is there was shown to pass. recipes: of the candidates, by name."""
    chosen = content["recommended"]
    try:
        if chosen is None:
            for name in (RECIPE_FILE, THRESHOLDS_FILE, HISTOGRAMS_FILE):
                (directory / name).unlink(missing_ok=True)
            return
        entry = next(entry for entry in content["cells"] if entry["name"] == chosen["cell"])
        results = inside / entry["results"]
        place = directory / "eval" / results.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for name in (PREDICTIONS, RESULTS):
            write_file(place / name, (results.parent / name).read_bytes())
    except OSError as error:
        raise cannot_write("recipe", directory, error) from None
    save_recipe(recipes[chosen["cell"]], directory, force=True, beside={HISTOGRAMS_FILE: None})


def best_of(entries: Sequence[dict[str, Any]], chain: str) -> dict[str, Any] | None:
    """The candidate of a chain that saves most of those that pass."""
    judged = [one for one in entries if one["chain"] == chain and one["verdict"] is not None]
    passed = [one for one in judged if one["verdict"]["decision"] == PASS]
    return max(passed, key=lambda one: float(one["saved"]["share"]), default=None)
