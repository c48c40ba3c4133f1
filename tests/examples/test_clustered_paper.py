"""By what examples/clustered_paper.py scores a row."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

with pytest.MonkeyPatch.context() as paths:
    paths.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import clustered_paper

# Right label, given label -> items: 6 hits, 3 rejections, 1 false alarm, 2 misses.
CONFUSION = {(1, 1): 6, (0, 0): 3, (0, 1): 1, (1, 0): 2}
LABELS = ("unacceptable", "acceptable")


def evaluation() -> Any:
    """Whose dense model is right in 9 of 12 items; patched always says the second label."""
    pairs = [pair for pair, count in CONFUSION.items() for _ in range(count)]
    records = [
        SimpleNamespace(
            item=SimpleNamespace(label=right),
            answer=lambda arm, given=given: {"answer": LABELS[given if arm == "dense" else 1]},
        )
        for right, given in pairs
    ]
    task = SimpleNamespace(labels=LABELS, primary="accuracy", totals=lambda *_: {"accuracy": 75.0})
    return SimpleNamespace(records=records, task=task)


def test_cola_is_scored_by_matthews_correlation() -> None:
    (row,) = (row for row in clustered_paper.ROWS if row.task == "CoLA")
    by_hand = (6 * 3 - 1 * 2) / math.sqrt((6 + 1) * (6 + 2) * (3 + 1) * (3 + 2))
    assert clustered_paper.score(row, evaluation(), "dense") == pytest.approx(100 * by_hand)
    assert clustered_paper.score(row, evaluation(), "patched") == 0, "always the same label"


def test_other_rows_are_scored_by_the_task() -> None:
    for row in clustered_paper.ROWS:
        if row.task != "CoLA":
            assert clustered_paper.score(row, evaluation(), "dense") == 75.0


@pytest.mark.parametrize(("given", "correlation"), [((True, False), 1.0), ((False, True), -1.0), ((True, True), 0.0)])
def test_ends_of_the_scale(given: tuple[bool, bool], correlation: float) -> None:
    assert clustered_paper.matthews((True, False), given) == correlation
