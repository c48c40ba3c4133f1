"""What a report shows, made up: cells with the numbers that a test wants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sparsify.evaluation.saved import ELEMENTS, Saved
from hf_sparsify.evaluation.verdict.gate import PASS, Verdict
from hf_sparsify.evaluation.verdict.interval import Interval
from hf_sparsify.reporting.found import Accuracy, Cell, Flip, Found, Kept, Speed, Timed

DESCRIBED: dict[str, Any] = {
    "command": "sparsify eval",
    "dataset": {"name": "mine", "split": "dev", "items": 8, "fingerprint": "abc"},
    "versions": {"torch": "2"},
    "environment": {"processor": "some"},
    "seed": 0,
    "flips": {},
}


def accuracy(difference: float = 0.0, **changes: Any) -> Accuracy:
    low, high = difference - 1, difference + 1
    verdict = Verdict(
        PASS, "a drop of at most 2.0 points", Interval(difference, low, high), None, 0.01, None, "ok", True
    )
    made = Accuracy(
        path=Path("results.json"),
        data="mine (dev)",
        items=8,
        metric="F1",
        dense=90.0,
        patched=90 + difference,
        difference=difference,
        low=low,
        high=high,
        budget=2.0,
        verdict=verdict,
        method="top-k",
        saved=(Saved(0.75, ELEMENTS),),
        modules=(Kept("layers.0.attn", 0.25, ()), Kept("layers.1.attn", 0.5, ())),
        flips=(),
        same_answer=1.0,
        divergence=0.1,
        record=DESCRIBED,
    )
    return replace(made, **changes)


def cell(name: str = "a", saved: float | None = 0.75, **changes: Any) -> Cell:
    shares = () if saved is None else (Saved(saved, ELEMENTS),)
    made = Cell(name, f"top-k {name}", "top-k", Path("recipes"), PASS, "the drop is small", saved=shares)
    return replace(made, **{"accuracy": accuracy(), **changes})


def speed(*medians: float, phase: str = "decode") -> Speed:
    """At 100, 200, ... tokens."""
    points = tuple(Timed(phase, 100 * (1 + n), m, m - 0.1, m + 0.1, m + 1) for n, m in enumerate(medians))
    lengths = [
        {
            "tokens": point.tokens,
            "phases": {
                phase: {
                    "ratio": {"median": point.median, "low": point.low, "high": point.high},
                    "ceiling": point.ceiling,
                }
            },
        }
        for point in points
    ]
    return Speed(
        Path("bench.json"), points, ("it is fast",), {**DESCRIBED, "model": "m", "method": "x", "lengths": lengths}
    )


def found(*cells: Cell, recommended: str | None = None, **changes: Any) -> Found:
    return replace(Found("recipe", Path("here"), ("model", "hash"), cells, recommended), **changes)


def searched(*cells: Cell, recommended: str | None = None, ended: bool = True) -> Found:
    search = {
        "ended": ended,
        "gate": {"margin": "a drop of at most 2.0 points"},
        **DESCRIBED,
        "recommended": {"cell": recommended, "reason": "the largest saving"} if recommended else None,
    }
    return found(*cells, recommended=recommended, kind="sweep", search=search)


def flip(name: str = "q", lost: bool = True, passage: str = "The barn is red.") -> Flip:
    return Flip(name, lost, ("barn",), "barn", "red", "What is red?", passage)
