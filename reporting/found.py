"""What a report knows of a recipe: how well it answered, how fast it was, and what was looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.verdict.gate import PASS, Verdict

FEED_FORWARD = "feed-forward activations"  # as a share is said to be of


@dataclass(frozen=True)
class Flip:
    """One answer that was right and went wrong, or the other way round. passage: "" where the item has none."""

    id: str
    lost: bool
    gold: tuple[str, ...]
    dense: str
    patched: str
    question: str
    passage: str


@dataclass(frozen=True)
class Kept:
    """What one module kept, as a share. heads: of each query head in rows longer than k, where it was counted."""

    module: str
    share: float
    heads: tuple[float, ...]


@dataclass(frozen=True)
class Accuracy:
    """One results.json: scores in percent, their difference in points with its 95 % interval, and what was kept.

    budget: the most that may be lost, in points. kept: {"attention elements": share, ...} of what is counted.
    """

    path: Path
    data: str
    items: int
    metric: str
    dense: float
    patched: float
    difference: float
    low: float
    high: float
    budget: float
    verdict: Verdict
    method: str
    kept: dict[str, float]
    modules: tuple[Kept, ...]
    flips: tuple[Flip, ...]
    same_answer: float | None
    divergence: float | None
    record: dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """One phase at one length: dense time / patched time with its quartiles, and what a perfect kernel would reach."""

    phase: str
    tokens: int
    median: float
    low: float
    high: float
    ceiling: float | None


@dataclass(frozen=True)
class Speed:
    """One bench.json."""

    path: Path
    points: tuple[Timed, ...]
    sentences: tuple[str, ...]
    record: dict[str, Any]

    def longest(self) -> dict[str, Timed]:
        """The phases at the greatest length."""
        most = max(point.tokens for point in self.points)
        return {point.phase: point for point in self.points if point.tokens == most}


@dataclass(frozen=True)
class Cell:
    """One recipe, or one setting of a search. saved: a share and of what. decision: "" where nothing was judged."""

    name: str
    label: str
    chain: str
    directory: Path
    decision: str = ""
    reason: str = ""
    error: str = ""
    accuracy: Accuracy | None = None
    speed: Speed | None = None
    saved: tuple[float, str] | None = None


@dataclass(frozen=True)
class Found:
    """What one directory holds. kind: "sweep", "tune" or "recipe".

    search: sweep.json or tune.json. sensitivity: sensitivity.json. notes: a sentence for each file that was left out.
    """

    kind: str
    directory: Path
    model: tuple[str, str]
    cells: tuple[Cell, ...]
    recommended: str | None = None
    search: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Cell | None:
        """The recommended cell."""
        return next((cell for cell in self.cells if cell.name == self.recommended), None)


def saved_of(accuracy: Accuracy | None) -> tuple[float, str] | None:
    """Of what the evaluation counted; of several counts that of attention."""
    if accuracy is None or not accuracy.kept:
        return None
    of = min(accuracy.kept, key=lambda of: of == FEED_FORWARD)
    return 1 - accuracy.kept[of], of


def feed_forward_saved(cell: Cell) -> float | None:
    """The share of activations that is saved beside what `saved` says; None where that is all."""
    kept = cell.accuracy.kept.get(FEED_FORWARD) if cell.accuracy else None
    return None if kept is None or (cell.saved and cell.saved[1] == FEED_FORWARD) else 1 - kept


def all_saved(cell: Cell) -> float:
    """Shares of attention and of activations, added up, as a sweep compares its cells."""
    return (cell.saved[0] if cell.saved else 0.0) + (feed_forward_saved(cell) or 0.0)


def largest_saving(cells: Sequence[Cell]) -> Cell | None:
    """Of the cells that passed the one that saves most."""
    passed = [cell for cell in cells if cell.decision == PASS and cell.saved is not None]
    return max(passed, key=all_saved, default=None)
