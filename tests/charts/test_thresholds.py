"""The data and the parts of the chart of thresholds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hf_sparsify.charts.files import spec, to_svg
from hf_sparsify.charts.thresholds import MOST_LINES, ThresholdCurves, thresholds_chart, thresholds_rows

pytestmark = pytest.mark.usefixtures("valid_charts")


def curves(heads: int, placement: str = "post-softmax", count: int = 1) -> list[ThresholdCurves]:
    theta = [[-4.0 - head, -5.0 - head] for head in range(heads)]
    return [ThresholdCurves(f"layer {index}", [20.0, 40.0], theta, 15, 60, placement) for index in range(count)]


def rows_of(chart: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = spec(chart)["data"]["values"]
    return found


def test_mean_and_percentiles_over_heads_at_every_length_and_at_the_ends() -> None:
    rows = thresholds_rows(curves(3, "pre-softmax"))
    assert [row["length"] for row in rows] == [15, 20.0, 40.0, 60]
    assert [row["mean"] for row in rows] == [-5.0, -5.0, -6.0, -6.0]
    assert rows[1]["p5"] == pytest.approx(-5.9)
    assert rows[1]["p95"] == pytest.approx(-4.1)


def test_post_softmax_thresholds_are_shown_as_weights() -> None:
    rows = thresholds_rows(curves(2))
    assert rows[1]["mean"] == pytest.approx(math.exp(-4.5))
    assert rows[1]["p5"] < rows[1]["mean"] < rows[1]["p95"]


def test_few_heads_have_a_line_each_and_many_a_band() -> None:
    few, many = thresholds_chart(curves(2), "t", "s"), thresholds_chart(curves(MOST_LINES + 1), "t", "s")
    assert {row["head"] for row in rows_of(few) if "theta" in row} == {0, 1}
    assert not [row for row in rows_of(many) if "theta" in row]
    assert "band" in str(spec(many)["title"])
    assert "area" in str(spec(many)["spec"])


def test_what_is_outside_the_calibrated_range_is_marked() -> None:
    outside = [row for row in rows_of(thresholds_chart(curves(2), "t", "s")) if "from" in row]
    assert [(row["from"] < row["to"]) for row in outside] == [True, True]
    assert outside[0]["to"] == 15
    assert outside[1]["from"] == 60


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2), (9, 3), (30, 5)])
def test_small_multiples_in_the_order_of_the_modules(count: int, columns: int) -> None:
    made = spec(thresholds_chart(curves(2, count=count), "t", "s"))
    assert made["columns"] == columns
    assert made["facet"]["sort"] == [f"layer {index}" for index in range(count)]


def test_weights_far_below_any_effect_do_not_squeeze_the_others() -> None:
    low = ThresholdCurves("layer 0", [20.0], [[-3.0], [-60.0]], 20, 20, "post-softmax")
    made = spec(thresholds_chart([low], "t", "s"))
    assert "1e-8" in str(made["title"])
    assert made["spec"]["layer"][1]["encoding"]["y"]["scale"]["domain"] == [1e-8, 0.1]
    assert "1e-8" not in str(spec(thresholds_chart(curves(2), "t", "s"))["title"])


@pytest.mark.parametrize("placement", ["post-softmax", "max-relative", "pre-softmax"])
def test_a_table_of_a_single_length_and_head_can_be_drawn(placement: str) -> None:
    one = ThresholdCurves("layer 0", [20.0], [[-3.0]], 20, 20, placement)
    assert "layer 0" in to_svg(thresholds_chart([one], "t", "s"))
