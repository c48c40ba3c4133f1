"""tune.json: what was tuned, every candidate with its verdict, and what is recommended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibration.histogram_file import HISTOGRAMS_FILE
from ..environment import describe_environment, package_versions
from ..errors import DataError, SparsifyError, UsageError
from ..evaluation.items import ItemSet
from ..evaluation.journal import PREDICTIONS, RESULTS
from ..evaluation.saved import SHARES, Saved, savings, weighted
from ..evaluation.verdict.gate import LEVEL, PASS
from ..files import cannot_write, read_file, write_file
from ..patcher.binding.loading import LoadedModel
from ..patcher.recipe import RECIPE_FILE, THRESHOLDS_FILE, Recipe, save_recipe
from ..strict_json import parse_json
from ..tuning.ladder import TUNED, UNIFORM, UNITS, Cell, weights_of
from ..tuning.sensitivity import SensitivityMap
from ..tuning.sensitivity_file import SENSITIVITY_FILE
from .evaluate import Outcome
from .tune_cells import CALIBRATION, Moved
from .tune_options import TuneOptions

TUNE_FILE = "tune.json"
SCHEMA_VERSION = 1
MOST_BYTES = 2**26


@dataclass(frozen=True)
class Candidate:
    """A cell of the ladder with its recipe and how far it moves the model on tuning data."""

    cell: Cell
    recipe: Recipe
    moved: Moved

    @property
    def is_tuned(self) -> bool:
        return self.cell.chain == TUNED


@dataclass
class TuneRecord:
    """tune.json in its directory, written after every step."""

    directory: Path
    content: dict[str, Any]

    @classmethod
    def start(
        cls,
        directory: Path,
        loaded: LoadedModel,
        tuning: ItemSet,
        evaluation: ItemSet,
        options: TuneOptions,
        *,
        key: str,
        command: str | None,
        force: bool,
    ) -> TuneRecord:
        """A new record, or that of the same tuning. UsageError for a directory with another one, unless forced."""
        before = _read(directory / TUNE_FILE)
        same = before is not None and before.get("key") == key
        if before is not None and not same and not force:
            raise UsageError(
                f"{directory.parent} holds another tuning: use --force to replace it, or -o for another directory"
            )
        gate = options.asking.gate
        calibrated = options.attention == "top-theta"
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "tune",
            "key": key,
            "command": command,
            "ended": False,
            "base_model": asdict(loaded.base),
            "task": None,
            "goal": options.goal,
            "dataset": describe_items(evaluation),
            "tuned_on": describe_items(tuning),
            "gate": {"max_drop": gate.max_drop, "min_recovery": gate.min_recovery, "margin": gate.margin},
            "seed": options.asking.seed,
            "limit": options.asking.limit,
            "versions": package_versions(),
            "environment": describe_environment(),
            "sensitivity": SENSITIVITY_FILE,
            "calibration": _calibration(tuning, options) if calibrated else None,
            "budgets": [],
            "chains": [],
            "cells": [],
            "moved": before.get("moved") if same and before is not None else None,
            "recommended": None,
            "comparison": None,
        }
        made = cls(directory, content)
        made.write()
        return made

    def write(self) -> None:
        """Puts the file in place; SparsifyError if that fails."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_file(
                self.directory / TUNE_FILE, (json.dumps(self.content, indent=1, allow_nan=False) + "\n").encode()
            )
        except OSError as error:
            raise cannot_write("tuning", self.directory, error) from None

    def moved(self, cells: Sequence[Cell]) -> list[Moved] | None:
        """What tuning data said of these cells in an earlier run; None if it did not get so far."""
        known = self.content["moved"]
        with suppress(TypeError, KeyError):
            return [Moved(**known[_keeps_key(cell)]) for cell in cells]
        return None

    def keep_moved(self, cells: Sequence[Cell], moved: Sequence[Moved]) -> None:
        """Keeps that for a later run, which tries again what failed."""
        measured = ((cell, one) for cell, one in zip(cells, moved, strict=True) if one.error is None)
        self.content["moved"] = {_keeps_key(cell): asdict(one) for cell, one in measured}
        self.write()

    def plan(self, candidates: Sequence[Candidate]) -> None:
        """The sequence that will be tested, written before an evaluation item is seen."""
        tuned = [one.cell for one in candidates if one.is_tuned]
        self.content["budgets"] = [cell.budget for cell in tuned]
        self.content["chains"] = [
            {"name": name, "level": LEVEL, "cells": [one.cell.name for one in candidates if one.cell.chain == name]}
            for name in (TUNED, UNIFORM)
        ]
        self.content["cells"] = [_entry(one, self.content["goal"]) for one in candidates]
        self.write()

    def finish(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome | str], found: SensitivityMap) -> None:
        """The verdicts, what is recommended, and the comparison. outcomes: of a candidate that failed, why."""
        goal = self.content["goal"]
        for entry, one, outcome in zip(self.content["cells"], candidates, outcomes, strict=True):
            if isinstance(outcome, str):
                entry |= {"status": "failed", "error": outcome}
                continue
            results, verdict = outcome.results, outcome.results["verdict"]
            self.content["task"] = results["task"]
            entry["status"] = "done"
            entry["results"] = str((outcome.directory / RESULTS).relative_to(self.directory))
            saved, beside = savings_of(results, one.cell, found, goal)
            entry |= {"saved": asdict(saved), "also_saved": beside and asdict(beside)}
            entry["verdict"] = {name: verdict[name] for name in ("decision", "p", "reason", "needed")} | {
                "level": LEVEL
            }
        best = {name: _best(self.content["cells"], name) for name in (TUNED, UNIFORM)}
        if (chosen := best[TUNED]) is not None:
            reason = f"the sparsest tuned allocation that passes: {chosen['verdict']['reason']}"
            self.content["recommended"] = {"cell": chosen["name"], "reason": reason}
        self.content["comparison"] = comparison(best[TUNED], best[UNIFORM], goal)
        self.content["ended"] = True
        self.write()


def savings_of(results: dict[str, Any], cell: Cell, found: SensitivityMap, goal: str) -> tuple[Saved, Saved | None]:
    """What a cell saved in the evaluation of what all modules of the map have when they are dense, and of activations
    beside attention. Modules are weighed as on tuning data; time was measured there alone."""
    beside = next((one for one in savings(results)[1:] if not one.is_attention), None)
    if goal == "latency":
        return Saved(1 - cell.cost, UNITS[goal]), beside
    keys = tuple(SHARES) if goal == "kept" else ("decode_v_rows_share",)
    kept = weighted(results["kept"]["modules"], keys, weights_of(found, goal))
    return Saved(1 - kept, UNITS[goal]), beside


def comparison(tuned: dict[str, Any] | None, uniform: dict[str, Any] | None, goal: str) -> dict[str, Any]:
    """What the best tuned and the best uniform candidate that pass save, side by side, for JSON."""
    saved = [None if one is None else one["saved"]["share"] for one in (tuned, uniform)]
    kept = [None if share is None else f"{100 * (1 - share):.1f} %" for share in saved]
    rate = "" if uniform is None else f" (keep = {uniform['setting']['keep']:g})"
    verb = "takes" if goal == "latency" else "keeps"
    if tuned is None and uniform is None:
        sentence = "neither a tuned allocation nor a uniform keep passes"
    elif uniform is None:
        sentence = f"tuned {verb} {kept[0]} of {UNITS[goal]} at PASS, and no uniform keep passes"
    elif tuned is None:
        sentence = f"no tuned allocation passes, and the best uniform keep {verb} {kept[1]} of {UNITS[goal]}{rate}"
    else:
        sentence = f"tuned {verb} {kept[0]} of {UNITS[goal]} at PASS, the best uniform keep {kept[1]}{rate}"
    return {
        "tuned": None if tuned is None else tuned["name"],
        "uniform": None if uniform is None else uniform["name"],
        "saved_tuned": saved[0],
        "saved_uniform": saved[1],
        "sentence": sentence,
    }


def write_recommended(directory: Path, inside: Path, content: dict[str, Any], candidates: Sequence[Candidate]) -> None:
    """Puts the recommended recipe with its results into the directory. Without one, that of an earlier verdict goes:
    what is there was shown to pass."""
    chosen = content["recommended"]
    try:
        if chosen is None:
            for name in (RECIPE_FILE, THRESHOLDS_FILE, HISTOGRAMS_FILE):
                (directory / name).unlink(missing_ok=True)
            return
        one = next(one for one in candidates if one.cell.name == chosen["cell"])
        entry = next(entry for entry in content["cells"] if entry["name"] == chosen["cell"])
        results = inside / entry["results"]
        place = directory / "eval" / results.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for name in (PREDICTIONS, RESULTS):
            write_file(place / name, (results.parent / name).read_bytes())
    except OSError as error:
        raise cannot_write("recipe", directory, error) from None
    save_recipe(one.recipe, directory, force=True, beside={HISTOGRAMS_FILE: None})


def describe_items(items: ItemSet) -> dict[str, Any]:
    """Which items, for JSON."""
    return {
        "name": items.name,
        "split": items.split,
        "schema": items.dataset.name,
        "fingerprint": items.fingerprint,
        "items": len(items),
    }


def _entry(one: Candidate, goal: str) -> dict[str, Any]:
    cell = one.cell
    methods = {method.name for method in one.recipe.plan.values()}
    setting = {
        "method": " and ".join(sorted(methods)),
        "keep": cell.keep,
        "k": None,
        "clusters": None,
        "ffn_keep": None,
    }
    return {
        "name": cell.name,
        "label": cell.label,
        "chain": cell.chain,
        "directory": f"recipes/{cell.name}",
        "setting": setting,
        "keeps": cell.keeps,
        "allocated_by": cell.by,
        "budget": cell.budget,
        "predicted_share": cell.cost,
        "tuning_kl": one.moved.kl,
        "status": "waiting",
        "error": None,
        "results": None,
        "bench": None,
        "recalibrated": False,
        "kept_per_k": one.moved.kept_per_k,
        "saved": None,
        "also_saved": None,
        "verdict": None,
    }


def _calibration(items: ItemSet, options: TuneOptions) -> dict[str, Any]:
    middle = options.keeps[len(options.keeps) // 2]
    return {
        "dataset": items.name,
        "split": items.split,
        "samples": len(items),
        "seed": options.asking.seed,
        "at": f"keep = {middle:g}",
        "recipe": CALIBRATION,
    }


def _best(entries: Sequence[dict[str, Any]], chain: str) -> dict[str, Any] | None:
    """The candidate of a chain that saves most of those that pass."""
    judged = [one for one in entries if one["chain"] == chain and one["verdict"] is not None]
    passed = [one for one in judged if one["verdict"]["decision"] == PASS]
    return max(passed, key=lambda one: float(one["saved"]["share"]), default=None)


def _keeps_key(cell: Cell) -> str:
    """64 hex digits over the keep rates of a cell: its name is the same for others, if the map was measured anew."""
    return hashlib.sha256(json.dumps(cell.keeps, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """The content of an earlier record; None if there is none that can be read."""
    try:
        data = parse_json(read_file(path, MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, DataError, SparsifyError):
        return {}
    return data if isinstance(data, dict) else {}
