"""The data and the parts of the charts of what was kept."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.charts.files import spec, to_svg
from hf_sparsify.charts.kept import MOST_NUMBERS, KeptHeads, LayerShare, kept_chart, kept_rows, share_chart

pytestmark = pytest.mark.usefixtures("valid_charts")

MODULES = [
    KeptHeads("encoder self", "0", [0.1, 0.2]),
    KeptHeads("encoder self", "10", [0.3, None]),
    KeptHeads("decoder cross", "0", [0.4, 0.05]),
]


def tables(chart: Any) -> list[list[dict[str, Any]]]:
    return [part["data"]["values"] for part in spec(chart)["vconcat"]]


def test_a_row_for_each_head_that_has_a_share() -> None:
    rows = kept_rows(MODULES)
    assert [row["share"] for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.05]
    assert rows[2] == {"group": "encoder self", "layer": "10", "head": 0, "share": 0.3}


def test_a_map_for_each_group_with_one_colour_scale() -> None:
    made = spec(kept_chart(MODULES, "t", ["s"]))
    assert [part["title"]["text"] for part in made["vconcat"]] == ["encoder self", "decoder cross"]
    assert [len(table) for table in tables(kept_chart(MODULES, "t", ["s"]))] == [3, 2]
    domains = [part["layer"][0]["encoding"]["color"]["scale"]["domain"] for part in made["vconcat"]]
    assert domains == [[0, 0.4], [0, 0.4]]
    assert made["vconcat"][0]["layer"][0]["encoding"]["y"]["sort"] == ["0", "10"]


@pytest.mark.parametrize(("heads", "numbers"), [(MOST_NUMBERS, True), (MOST_NUMBERS + 1, False)])
def test_numbers_where_there_is_room(heads: int, numbers: bool) -> None:
    made = spec(kept_chart([KeptHeads("decoder self", "0", [0.25] * heads)], "t", ["s"]))
    assert (len(made["vconcat"][0]["layer"]) == 2) == numbers


def test_shares_are_printed_in_the_file() -> None:
    drawn = to_svg(kept_chart(MODULES, "Kept share", ["of long rows"]))
    assert all(text in drawn for text in ("Kept share", "of long rows", "30.0%", "5.0%"))


def test_bars_over_layers_for_each_group() -> None:
    layers = [LayerShare("encoder feed-forward", "0", 0.5), LayerShare("decoder feed-forward", "0", 0.25)]
    chart = share_chart(layers, "t", ["s"], "kept share of activations")
    assert tables(chart) == [[{"layer": "0", "share": 0.5}], [{"layer": "0", "share": 0.25}]]
    assert "kept share of activations" in to_svg(chart)
