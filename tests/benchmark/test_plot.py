"""The chart of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.benchmark.plot import MEASURED, PERFECT, plot_ratios, ratio_chart, ratio_points
from hf_sparsify.charts.files import spec

pytestmark = pytest.mark.usefixtures("valid_charts")


def phase(median: float, ceiling: float | None) -> dict[str, Any]:
    return {"ratio": {"median": median, "low": median - 0.1, "high": median + 0.2}, "ceiling": ceiling}


RESULTS: dict[str, Any] = {
    "model": "demo",
    "method": "top-k, k = 8",
    "lengths": [
        {"tokens": 512, "phases": {"prefill": phase(0.9, 1.5), "decode": phase(1.1, None)}},
        {"tokens": 2048, "phases": {"prefill": phase(1.2, 2.0), "decode": phase(1.3, None)}},
    ],
}


def test_points_by_hand() -> None:
    first, *_, last = ratio_points(RESULTS)
    assert first == {"phase": "prefill", "tokens": 512, "ratio": 0.9, "low": 0.8, "high": 1.1, "ceiling": 1.5}
    assert (last["phase"], last["tokens"], last["ratio"], last["ceiling"]) == ("decode", 2048, 1.3, None)


def test_lines_of_what_was_measured_and_of_perfect_kernels() -> None:
    made = spec(ratio_chart(RESULTS))
    values = [value for layer in made["layer"] for value in layer["data"]["values"]]
    lines = [value for value in values if "what" in value and "phase" in value]
    assert sorted({(line["phase"], line["what"]) for line in lines}) == [
        ("decode", MEASURED),
        ("prefill", MEASURED),
        ("prefill", PERFECT),
    ]


def test_the_file(tmp_path: Path) -> None:
    assert plot_ratios(RESULTS, tmp_path / "ratio.png")
    assert (tmp_path / "ratio.png").read_bytes().startswith(b"\x89PNG")
