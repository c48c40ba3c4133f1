"""What a report knows of a recipe: how well it answered, how fast it was, and what was looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.saved import Saved, unbeaten
from ..evaluation.verdict.gate import PASS, Verdict


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

    budget: the most that may be lost, in points. saved: see evaluation.saved.savings.
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
    saved: tuple[Saved, ...]
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
    """One recipe, or one setting of a search. saved: of attention first, then of feed-forward activations. decision:
    "" where nothing was judged."""

    name: str
    label: str
    chain: str
    directory: Path
    decision: str = ""
    reason: str = ""
    error: str = ""
    accuracy: Accuracy | None = None
    speed: Speed | None = None
    saved: tuple[Saved, ...] = ()

    @property
    def activations_saved(self) -> Saved | None:
        """Of feed-forward layers."""
        return next((one for one in self.saved if not one.is_attention), None)

    @property
    def also_saved(self) -> Saved | None:
        """Of feed-forward layers, beside attention."""
        return self.activations_saved if len(self.saved) > 1 else None


@dataclass(frozen=True)
class Found:
    """What one directory holds. kind: "sweep", "tune" or "recipe".

    others: the cells of a sweep that save most of something else than the recommended one. search: sweep.json or
    tune.json. sensitivity: sensitivity.json. notes: a sentence for each file that was left out.
    """

    kind: str
    directory: Path
    model: tuple[str, str]
    cells: tuple[Cell, ...]
    recommended: str | None = None
    search: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def best(self) -> Cell | None:
        """The recommended cell."""
        return next((cell for cell in self.cells if cell.name == self.recommended), None)


def largest_saving(cells: Sequence[Cell]) -> Cell | None:
    """Of the cells that passed the one that saves most; the first, where several save most each of something else."""
    passed = [cell for cell in cells if cell.decision == PASS and cell.saved]
    best = unbeaten([{one.of: one.share for one in cell.saved} for cell in passed])
    return passed[best[0]] if best else None
