"""tune.json: what was tuned, every candidate with its verdict, and what is recommended."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..environment import describe_environment, package_versions
from ..errors import DataError, SparsifyError, UsageError
from ..evaluation.journal import RESULTS
from ..evaluation.saved import Saved
from ..evaluation.verdict.gate import LEVEL
from ..files import cannot_write, read_file, write_file
from ..patcher.binding.loading import LoadedModel
from ..patcher.recipe import Recipe
from ..processes import Processes
from ..strict_json import parse_json
from ..tuning.ladder import TUNED, UNIFORM, Cell
from ..tuning.sensitivity import SensitivityMap
from ..tuning.sensitivity_file import SENSITIVITY_FILE
from .calibrator import CALIBRATION, describe_calibration
from .evaluate import Outcome
from .tune_options import TuneData, TuneOptions
from .tune_result import best_of, comparison, kept_share

TUNE_FILE = "tune.json"
SCHEMA_VERSION = 1
MOST_BYTES = 2**26


@dataclass(frozen=True)
class Moved:
    """On tuning data: the mean KL divergence from dense, None for a task without one, and kept / k of long rows.
    error: why neither is known. recalibrated: whether thresholds were fitted at this allocation because those from the
    calibration of all kept too much or too little."""

    kl: float | None
    kept_per_k: float | None
    error: str | None = None
    recalibrated: bool = False


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
    """tune.json in its directory, written after every step, by the first process."""

    directory: Path
    content: dict[str, Any]
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def start(
        cls,
        directory: Path,
        loaded: LoadedModel,
        data: TuneData,
        options: TuneOptions,
        *,
        key: str,
        command: str | None,
        force: bool,
        processes: Processes | None = None,
    ) -> TuneRecord:
        """A new record, or that of the same tuning; calibrations of another one go. UsageError for a directory with
        another tuning, unless forced."""
        processes = processes or Processes()
        before = processes.gather(_read(directory / TUNE_FILE) if processes.is_main else None)[0]
        same = before is not None and before.get("key") == key
        if before is not None and not same and not force:
            raise UsageError(
                f"{directory.parent} holds another tuning: use --force to replace it, or -o for another directory"
            )
        if not same and processes.is_main:
            _remove(directory / CALIBRATION)
        gate = options.asking.gate
        content: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "tune",
            "key": key,
            "command": command,
            "ended": False,
            "base_model": asdict(loaded.base),
            "task": None,
            "goal": options.goal,
            "unit": options.unit,
            "dataset": data.evaluation.describe(),
            "tuned_on": data.tuning.describe(),
            "gate": {"max_drop": gate.max_drop, "min_recovery": gate.min_recovery, "margin": gate.margin},
            "seed": options.asking.seed,
            "limit": options.asking.limit,
            "versions": package_versions(),
            "environment": describe_environment(),
            "sensitivity": SENSITIVITY_FILE,
            "calibration": describe_calibration(
                data.tuning, len(data.tuning), options.asking.seed, f"keep = {options.middle:g}"
            )
            if options.calibrates
            else None,
            "budgets": [],
            "chains": [],
            "cells": [],
            "moved": before.get("moved") if same and before is not None else None,
            "recommended": None,
            "comparison": None,
        }
        made = cls(directory, content, processes)
        made.write()
        processes.wait()  # nobody looks for a calibration that is being removed
        return made

    def write(self) -> None:
        """Puts the file in place; SparsifyError if that fails."""
        if not self.processes.is_main:
            return
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
            return [Moved(**known[keeps_key(cell)]) for cell in cells]
        return None

    def keep_moved(self, cells: Sequence[Cell], moved: Sequence[Moved]) -> None:
        """Keeps that for a later run, which tries again what failed."""
        measured = ((cell, one) for cell, one in zip(cells, moved, strict=True) if one.error is None)
        self.content["moved"] = {keeps_key(cell): asdict(one) for cell, one in measured}
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
        """Takes the verdicts, what is recommended, and the comparison, and does not write them yet. outcomes: of a
        candidate that failed, why."""
        goal = self.content["goal"]
        for entry, one, outcome in zip(self.content["cells"], candidates, outcomes, strict=True):
            if isinstance(outcome, str):
                entry |= {"status": "failed", "error": outcome}
                continue
            results, verdict = outcome.results, outcome.results["verdict"]
            self.content["task"] = results["task"]
            entry["status"] = "done"
            entry["results"] = str((outcome.directory / RESULTS).relative_to(self.directory))
            share = 1 - kept_share(results, one.cell, found, goal)
            entry["saved"] = asdict(Saved(share, self.content["unit"]))
            entry["verdict"] = {name: verdict[name] for name in ("decision", "p", "reason", "needed")} | {
                "level": LEVEL
            }
        best = {name: best_of(self.content["cells"], name) for name in (TUNED, UNIFORM)}
        if (chosen := best[TUNED]) is not None:
            reason = f"the sparsest tuned allocation that passes: {chosen['verdict']['reason']}"
            self.content["recommended"] = {"cell": chosen["name"], "reason": reason}
        self.content["comparison"] = comparison(best[TUNED], best[UNIFORM], self.content["unit"])
        self.content["ended"] = True


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
        "recalibrated": one.moved.recalibrated,
        "kept_per_k": one.moved.kept_per_k,
        "saved": None,
        "verdict": None,
    }


def keeps_key(cell: Cell) -> str:
    """64 hex digits over the keep rates of a cell: its name is the same for others, if the map was measured anew."""
    return hashlib.sha256(json.dumps(cell.keeps, sort_keys=True).encode()).hexdigest()


def _remove(directory: Path) -> None:
    try:
        if directory.is_dir():
            shutil.rmtree(directory)
    except OSError as error:
        raise cannot_write("tuning", directory.parent, error) from None


def _read(path: Path) -> dict[str, Any] | None:
    """The content of an earlier record; None if there is none that can be read."""
    try:
        data = parse_json(read_file(path, MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, DataError, SparsifyError):
        return {}
    return data if isinstance(data, dict) else {}
