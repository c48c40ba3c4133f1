"""sweep.json: what was asked, what each cell is and came to, and which one is recommended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..evaluation.verdict.gate import PASS
from ..evaluation.verdict.sequence import chain_level
from ..files import cannot_write, read_file, write_file
from ..patcher.recipe import check_place
from ..strict_json import parse_json
from .grid import Cell, chains_of

SCHEMA_VERSION = 1  # of sweep.json
FILE, RECIPES, CALIBRATION = "sweep.json", "recipes", "calibration"
DEFAULT_DIRECTORY = "sparsified-sweep"
MOST_BYTES = 2**26
WAITING, DONE, REFUSED, FAILED = "waiting", "done", "refused", "failed"

# Key of a total in results["kept"] -> what is saved where that is below 1; attention before feed-forward layers.
SAVED = {
    "kept_share": "attention elements",
    "cluster_scores_share": "attention scores",
    "activations_kept_share": "activations",
}

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
    verdict = results["verdict"]
    entry |= {"status": DONE, "error": None, "results": place, "saved": saved(results["kept"]["total"])}
    entry["verdict"] = {"decision": verdict["decision"], "p": verdict["p"], "level": level, "reason": verdict["reason"]}


def fail(entry: Entry, reason: str) -> None:
    """Marks a cell that could not be made or run."""
    entry |= {"status": FAILED, "error": reason, "results": None, "saved": None, "verdict": None}


def saved(total: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"share", "of"} of what was not kept or computed; with both, of attention."""
    for key, of in SAVED.items():
        if total[key] is not None:
            return {"share": 1 - total[key], "of": of}
    return None


def recommend(document: Document, totals: Mapping[str, Mapping[str, Any]]) -> dict[str, str] | None:
    """The cell that saves most among those that pass: {"cell", "reason"}; None if no sparse one does. totals: what each
    cell kept in all, by name."""
    passed = [cell for cell in sparse_cells(document) if decision(cell) == PASS]
    if not passed:
        return None
    kinds = dict.fromkeys(cell["saved"]["of"] for cell in passed)
    best = max(passed, key=lambda cell: _all_saved(totals[cell["name"]]))
    share, of = 100 * best["saved"]["share"], best["saved"]["of"]
    patched = best["attention"]
    if patched and patched["patched"] < patched["modules"] and of != SAVED["activations_kept_share"]:
        of += f" in {patched['patched']} of {patched['modules']} attention modules"
    activations = totals[best["name"]]["activations_kept_share"]
    if activations is not None and best["saved"]["of"] != SAVED["activations_kept_share"]:
        of += f" and {100 * (1 - activations):.1f} % of activations"
    which = f"the most of the {len(passed)} sparse ones that pass" if len(passed) > 1 else "the one sparse cell to pass"
    if len(kinds) > 1:
        which += f", but shares of {', of '.join(kinds)} are not the same: compare times too (--bench)"
    return {"cell": best["name"], "reason": f"{best['label']} saves {share:.1f} % of {of}: {which}"}


def _all_saved(total: Mapping[str, Any]) -> float:
    """Shares of attention and of activations, added up."""
    return sum(1 - total[key] for key in SAVED if total[key] is not None)


def sparse_cells(document: Document) -> list[Entry]:
    """Those that are not dense by construction."""
    return [entry for entry in document["cells"] if not entry["dense"]]


def decision(entry: Entry) -> str | None:
    """A cell's verdict in one word, if it has one."""
    return entry["verdict"] and str(entry["verdict"]["decision"])
