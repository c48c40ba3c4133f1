"""The verdict in one sentence."""

from __future__ import annotations

from ..evaluation.verdict.gate import PASS
from .found import Cell, Found

NONE, NOT_ENDED = "NONE PASSED", "NOT ENDED"


def headline(found: Found) -> tuple[str, str]:
    """The decision, "" without one, and a sentence: what is recommended and what it saves, or why nothing is."""
    best = found.best
    if found.search:
        if best:
            return PASS, _recommended(found, best)
        return NONE if found.search["ended"] else NOT_ENDED, _none(found)
    judged = [cell for cell in found.cells if cell.accuracy]
    if not judged:
        return "", f"{found.directory.name} was timed and not evaluated: nothing is known of its accuracy."
    cell = best or next((cell for cell in judged if cell.decision != PASS), judged[0])
    return cell.decision, f"{_called(found, cell)}: {_saves(cell)}{cell.reason}."


def _recommended(found: Found, best: Cell) -> str:
    comparison = found.search.get("comparison") or {}
    said = str(comparison.get("sentence") or "").rstrip(".") if isinstance(comparison, dict) else ""
    more = f" {said[:1].upper()}{said[1:]}." if said else ""
    reason = best.reason or str(found.search["recommended"].get("reason") or "")
    return f"{_called(found, best)}: {_saves(best)}{reason.rstrip('.')}.{more}{_others(found)}"


def _others(found: Found) -> str:
    """Those that pass too and save most of something else."""
    cells = [cell for cell in found.cells if cell.name in found.others]
    said = "; ".join(f"{cell.label} saves {' and '.join(map(str, cell.saved))}" for cell in cells)
    return f" Not to be compared with that: {said}." if said else ""


def _called(found: Found, cell: Cell) -> str:
    return f"{found.model[0]} with {cell.label}"


def _saves(cell: Cell) -> str:
    return f"saves {' and '.join(map(str, cell.saved))}; " if cell.saved else ""


def _none(found: Found) -> str:
    """Why nothing is recommended: the sweep goes on, nothing could be run, or nothing stayed within the margin."""
    margin = str(found.search["gate"]["margin"])
    sparse = [cell for cell in found.cells if cell.decision and cell.decision != PASS]
    start = f"No setting of {found.model[0]} is shown to stay within {margin}"
    if not found.search["ended"]:
        tested = sum(1 for cell in found.cells if cell.decision)
        return f"{start} yet: {tested} of {len(found.cells)} were tested and the {found.kind} has not ended."
    if not sparse:
        return f"{start}: none of {len(found.cells)} could be tested."
    return f"{start}; with {sparse[0].label} {sparse[0].reason.rstrip('.')}."
