"""sweep.json: what was asked, what each cell is and came to, and which one is recommended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..commands.calibrator import CALIBRATION
from ..errors import DataError, UsageError
from ..evaluation.saved import Saved, savings, unbeaten
from ..evaluation.verdict.gate import PASS
from ..evaluation.verdict.sequence import chain_level
from ..files import cannot_write, read_file, write_file
from ..patcher.recipe import check_place
from ..strict_json import parse_json
from .grid import Cell, chains_of

SCHEMA_VERSION = 1  # of sweep.json
FILE, RECIPES = "sweep.json", "recipes"
DEFAULT_DIRECTORY = "sparsified-sweep"
MOST_BYTES = 2**26
WAITING, DONE, REFUSED, FAILED = "waiting", "done", "refused", "failed"

Entry = dict[str, Any]  # a cell in sweep.json
Document = dict[str, Any]


def make_document(cells: Sequence[Cell], refused: Mapping[str, str], **about: Any) -> Document:
    """What sweep.json holds before anything is run. refused: the cells that cannot be planned, with the reason. about:
    all that describes the command, by its key."""
    names = {name: [cell.name for cell in members] for name, members in chains_of(cells).items()}
    whole = [name for name, members in names.items() if not refused.keys() >= set(members)]
    level = chain_level(len(whole))
    chains = [{"name": name, "level": level, "cells": members} for name, members in names.items()]
    entries = [make_entry(cell, refused.get(cell.name)) for cell in cells]
    head = {"schema_version": SCHEMA_VERSION, "kind": "sweep", **about}
    return {**head, "chains": chains, "cells": entries, "recommended": None, "ended": False}


def make_entry(cell: Cell, refused: str | None) -> Entry:
    """A cell that waits, or that was refused with this reason."""
    setting = cell.setting
    return {
        "name": cell.name,
        "label": setting.label,
        "chain": setting.chain,
        "directory": f"{RECIPES}/{cell.name}",
        "setting": asdict(setting),
        "dense": setting.is_dense,
        "status": WAITING if refused is None else REFUSED,
        "error": refused,
        "results": None,
        "bench": None,
        "bench_error": None,
        "recalibrated": False,
        "kept_per_k": None,
        "saved": None,
        "also_saved": None,
        "attention": None,
        "verdict": None,
    }


def check_output(directory: Path) -> None:
    """Before anything is loaded: SparsifyError if a sweep cannot be written there, UsageError if the directory holds
    anything else."""
    check_place(directory, "sweep")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / FILE).exists():
        raise UsageError(f"{directory} exists already and holds no sweep: give -o another directory")


def earlier(directory: Path, run: str, *, force: bool) -> Document | None:
    """The sweep that a directory holds, if it is this one; UsageError for another one, unless it may be replaced."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        found = parse_json(read_file(path, MOST_BYTES))
        known = found["schema_version"] == SCHEMA_VERSION and found["kind"] == "sweep"
        if known and found["run"] == run and all(isinstance(entry["name"], str) for entry in found["cells"]):
            return dict(found)
        what = f"another sweep ({found['command']})" if known else "what another version wrote"
    except (OSError, DataError, ValueError, KeyError, TypeError, RecursionError):
        what = f"a {FILE} that was damaged"
    if not force:
        raise UsageError(f"{directory} holds {what}: give -o another directory, or --force to replace it")
    return None


def remove_sweep(directory: Path) -> None:
    """Removes what an earlier sweep wrote, and nothing else. SparsifyError if that fails."""
    try:
        (directory / FILE).unlink(missing_ok=True)
        for name in (RECIPES, CALIBRATION):
            if (directory / name).is_dir():
                shutil.rmtree(directory / name)
    except OSError as error:
        raise cannot_write("sweep", directory, error) from None


def save_document(directory: Path, document: Document) -> None:
    """Writes sweep.json in one step; SparsifyError if it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / FILE, (json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise cannot_write("sweep", directory, error) from None


def take_results(entry: Entry, results: Mapping[str, Any], place: str, level: float) -> None:
    """Puts what an evaluation came to into a cell. place: of results.json, below the sweep. level: of its chain."""
    verdict, saved = results["verdict"], [asdict(one) for one in savings(results)]
    entry |= {"status": DONE, "error": None, "results": place}
    entry |= {"saved": saved[0] if saved else None, "also_saved": saved[1] if len(saved) > 1 else None}
    entry["verdict"] = {"decision": verdict["decision"], "p": verdict["p"], "level": level, "reason": verdict["reason"]}


def fail(entry: Entry, reason: str) -> None:
    """Marks a cell that could not be made or run."""
    entry |= {"status": FAILED, "error": reason, "results": None, "saved": None, "also_saved": None, "verdict": None}


def recommend(document: Document, speeds: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """The cell that saves most among those that pass: {"cell", "reason", "others"}; None if no sparse one does.

    Shares of different things are not compared. Cells that save most each of something else are told apart by their
    times, if all of them have some; those that are still left are all named, "others" after the first. speeds: dense
    time / patched time in each phase, of the cells that were timed.
    """
    passed = [cell for cell in sparse_cells(document) if decision(cell) == PASS and cell["saved"]]
    best = [passed[place] for place in unbeaten([_shares(cell) for cell in passed])]
    if not best:
        return None
    why = f"the most of the {len(passed)} sparse ones that pass" if len(passed) > 1 else "the one sparse cell to pass"
    if len(best) > 1:
        why = "shares of different things are not compared: take one by their times (--bench)"
        if all(cell["name"] in speeds for cell in best):
            count = len(best)
            best = [best[place] for place in unbeaten([speeds[cell["name"]] for cell in best])]
            why = f"the fastest of the {count} that save most of something"
            if len(best) > 1:
                why = "none is faster in both phases"
    reason = f"{'; '.join(_saves(cell) for cell in best)}: {why}"
    return {"cell": best[0]["name"], "reason": reason, "others": [cell["name"] for cell in best[1:]]}


def _shares(cell: Entry) -> dict[str, float]:
    return {one["of"]: one["share"] for one in (cell["saved"], cell["also_saved"]) if one is not None}


def _saves(cell: Entry) -> str:
    saved = [Saved(**one) for one in (cell["saved"], cell["also_saved"]) if one is not None]
    patched = cell["attention"]
    dense = patched and patched["patched"] < patched["modules"] and saved[0].is_attention
    where = f" with {patched['patched']} of {patched['modules']} attention modules sparse" if dense else ""
    return f"{cell['label']} saves {' and '.join(map(str, saved))}{where}"


def sparse_cells(document: Document) -> list[Entry]:
    """Those that are not dense by construction."""
    return [entry for entry in document["cells"] if not entry["dense"]]


def decision(entry: Entry) -> str | None:
    """A cell's verdict in one word, if it has one."""
    return entry["verdict"] and str(entry["verdict"]["decision"])
