"""The data and the parts of the chart of an attention pattern."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.charts.files import spec, to_svg
from hf_sparsify.charts.pattern import MOST_CELLS, MOST_LABELS, HeadPattern, block_size, pattern_cells, pattern_chart

pytestmark = pytest.mark.usefixtures("valid_charts")


def causal(length: int, kept: int = 2, first: int = 0) -> HeadPattern:
    """A head that looks back evenly and keeps the last keys; the first ones are protected."""
    visible = [[k <= q for k in range(length)] for q in range(length)]
    protected = [[seen and k < first for k, seen in enumerate(row)] for row in visible]
    keep = [[seen and (q - k < kept or k < first) for k, seen in enumerate(row)] for q, row in enumerate(visible)]
    dense = [[seen / (q + 1) for seen in row] for q, row in enumerate(visible)]
    patched = [[seen / sum(row) for seen in row] for row in keep]
    return HeadPattern("head 0", dense, patched, visible, keep, protected)


def by_place(cells: list[dict[str, Any]], arm: str) -> dict[tuple[int, int], dict[str, Any]]:
    return {(cell["query"], cell["key"]): cell for cell in cells if cell["arm"] == arm}


def test_each_visible_cell_of_both_arms_and_no_other() -> None:
    cells = pattern_cells(causal(4))
    triangle = {(q, k) for q in range(4) for k in range(q + 1)}
    assert set(by_place(cells, "dense")) == set(by_place(cells, "patched")) == triangle
    assert by_place(cells, "dense")[3, 0] == {"query": 3, "key": 0, "arm": "dense", "weight": 0.25, "state": "dense"}


def test_dropped_kept_and_protected_keys_are_told_apart() -> None:
    patched = by_place(pattern_cells(causal(4, first=1)), "patched")
    states = {place: cell["state"] for place, cell in patched.items() if place[0] == 3}
    assert states == {(3, 0): "protected", (3, 1): "dropped", (3, 2): "kept", (3, 3): "kept"}
    assert patched[3, 1]["weight"] == 0
    assert patched[3, 2]["weight"] == pytest.approx(1 / 3)


def test_long_sequences_are_drawn_in_blocks_of_the_largest_weight() -> None:
    length = 2 * MOST_CELLS
    assert [block_size(tokens) for tokens in (MOST_CELLS, MOST_CELLS + 1, length)] == [1, 2, 2]
    cells = pattern_cells(causal(length))
    patched = by_place(cells, "patched")
    assert len(patched) == MOST_CELLS * (MOST_CELLS + 1) // 2
    assert patched[0, 0]["weight"] == 1
    assert patched[5, 4]["state"] == "kept"  # the query 10 keeps the key 9
    assert patched[5, 3]["state"] == "dropped"
    assert "2 x 2 tokens" in str(spec(pattern_chart([causal(length)], "t", None, None))["title"])


def test_texts_of_tokens_where_they_are_legible() -> None:
    few, many = [f"word{index}" for index in range(6)], ["word"] * (MOST_LABELS + 1)
    drawn = to_svg(pattern_chart([causal(6)], "t", few, few))
    assert all(f">{text}<" in drawn for text in few)
    assert ">word<" not in to_svg(pattern_chart([causal(MOST_LABELS + 1)], "t", many, many))


def test_texts_that_look_like_code_stay_texts() -> None:
    texts = ['"]', "\\", "'", "<b>"]
    drawn = to_svg(pattern_chart([causal(4)], "t", texts, texts))
    assert "&lt;b&gt;" in drawn


def test_heads_under_each_other_with_a_scale_in_common() -> None:
    chart = spec(pattern_chart([causal(4), causal(4, first=1)], "Weights", None, None))
    assert [row["title"]["text"] for row in chart["vconcat"]] == ["head 0", "head 0"]
    assert [len(row["spec"]["layer"]) for row in chart["vconcat"]] == [2, 3]  # the second has protected keys
    assert "protected" in str(chart["title"])
    assert chart["vconcat"][0]["facet"]["column"]["sort"] == ["dense", "patched"]


def test_a_single_row_over_many_keys() -> None:
    keys = 3 * MOST_CELLS
    row = [[1 / keys] * keys]
    seen = [[True] * keys]
    head = HeadPattern("head 0", row, row, seen, seen, [[False] * keys])
    assert len(by_place(pattern_cells(head), "dense")) == MOST_CELLS
    title = str(spec(pattern_chart([head], "t", ["<pad>"], None))["title"])
    assert "1 x 3 tokens" in title
    assert "dropped" not in title
