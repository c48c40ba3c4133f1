"""The table of all recipes, each with its scores, its verdict and what it saves."""

from __future__ import annotations

from collections.abc import Sequence

from .found import Cell
from .parts import Section, Table, Value

SAVED, ALSO_SAVED, SAME = "saved, %", "feed-forward saved, %", "same answer, %"
SCORES = ("dense", "patched", "difference", "low", "high")
HEADER = ("recipe", "verdict", SAVED, "of", ALSO_SAVED, "metric", *SCORES, SAME, "KL", "times as fast", "why")


def cells_section(cells: Sequence[Cell], best: Cell | None) -> Section:
    """One row for each recipe, in the order in which they were tried."""
    marked = next((index for index, cell in enumerate(cells) if cell is best), None)
    rows = tuple(_row(cell) for cell in cells)
    table = Table("cells", "All recipes", HEADER, rows, marked, one_decimal=(SAVED, ALSO_SAVED, *SCORES, SAME))
    said = (
        "Differences and their 95 % intervals are in points. Times as fast: dense time / patched time at the longest "
        "text that was timed. Where attention and feed-forward layers are sparse, what the latter save has its own "
        "column.",
    )
    return Section("cells", "All recipes", said, tables=(table,))


def _row(cell: Cell) -> tuple[Value, ...]:
    accuracy = cell.accuracy
    scores: tuple[Value, ...] = ("–", None, None, None, None, None, None, None)
    if accuracy:
        same = None if accuracy.same_answer is None else 100 * accuracy.same_answer
        scores = (
            *(accuracy.metric, accuracy.dense, accuracy.patched, accuracy.difference, accuracy.low, accuracy.high),
            *(same, accuracy.divergence),
        )
    saved: tuple[Value, ...] = (100 * cell.saved[0].share, cell.saved[0].of) if cell.saved else (None, "–")
    saved += (None if cell.also_saved is None else 100 * cell.also_saved.share,)
    longest = cell.speed.longest() if cell.speed else {}
    faster = "; ".join(f"{phase} {one.median:.2f}" for phase, one in longest.items()) or "–"
    return cell.label, cell.decision or cell.error or "–", *saved, *scores, faster, cell.reason or cell.error or "–"
