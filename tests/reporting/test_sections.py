"""What the sections of a page say, with made-up numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hf_sparsify.charts.files import spec, to_svg
from hf_sparsify.evaluation.saved import ACTIVATIONS, ELEMENTS, SCORES, Saved
from hf_sparsify.reporting.bench_chart import MOST_CHARTS, bench_section
from hf_sparsify.reporting.cells import HEADER, cells_section
from hf_sparsify.reporting.csv_files import csv_bytes
from hf_sparsify.reporting.flips import SHOWN, flips_section, marked
from hf_sparsify.reporting.found import Kept, largest_saving
from hf_sparsify.reporting.headline import headline
from hf_sparsify.reporting.heat_maps import kept_section, sensitivity_section
from hf_sparsify.reporting.pareto import pareto_section
from hf_sparsify.reporting.parts import Table, numbered, shown
from hf_sparsify.reporting.reproduce import reproduce_section
from made_up_cells import DESCRIBED, accuracy, cell, flip, found, searched, speed
from sweep_directories import sensitivity

pytestmark = pytest.mark.usefixtures("valid_charts")


def values(chart: Any) -> list[dict[str, Any]]:
    made = spec(chart)
    return [value for part in (made, *made.get("layer", [])) for value in part.get("data", {}).get("values", [])]


def test_pareto_by_hand() -> None:
    sparse = cell("b", 0.9, accuracy=accuracy(-3.0), decision="FAIL")
    worse = cell("c", 0.5, accuracy=accuracy(-4.0), decision="")
    section = pareto_section([cell(), sparse, worse], cell())
    assert section is not None
    (figure,) = section.figures
    assert figure.table.rows[0] == ("top-k a", "top-k", 25.0, 0.0, -1.0, 1.0, "PASS")
    assert [row[-1] for row in figure.table.rows] == ["PASS", "FAIL", "NOT TESTED"]
    assert figure.table.marked == 0
    assert "at most 2 points may be lost. Recommended: top-k a." in figure.says
    band = [value for value in values(figure.chart) if set(value) == {"x", "y"}]
    assert [(round(value["x"]), value["y"]) for value in band] == [(10, -3.0), (25, 0.0)], "c is worse and less sparse"
    assert {"x": 100, "y": -2.0, "what": "allowed"} in values(figure.chart)
    assert "top-k" in to_svg(figure.chart)


def test_pareto_charts_are_of_those_that_were_asked_the_same_and_timed() -> None:
    other = cell("b", accuracy=accuracy(data="others"))
    timed = [cell(name, speed=speed(1.5, 2.0)) for name in ("c", "d")]
    section = pareto_section([*timed, other], None)
    assert section is not None
    assert [figure.name for figure in section.figures] == ["pareto", "pareto-decode", "pareto-2"]
    assert section.figures[1].table.rows[0][2] == 50.0, "half the time of dense"
    assert pareto_section([cell(accuracy=None)], None) is None


def test_feed_forward_has_a_chart_of_its_own() -> None:
    attention = Saved(0.75, ELEMENTS)
    cells = [
        cell("a"),
        replace(cell("b"), saved=(attention, Saved(0.875, ACTIVATIONS))),
        replace(cell("c"), saved=(attention, Saved(0.75, ACTIVATIONS))),
    ]
    section = pareto_section(cells, cells[1])
    assert section is not None
    attention, activations = section.figures
    assert (attention.name, activations.name) == ("pareto", "pareto-feed-forward")
    assert [row[2] for row in attention.table.rows] == [25.0] * 3
    assert activations.table.header[2] == "kept of feed-forward activations, %"
    assert [(row[0], row[2]) for row in activations.table.rows] == [("top-k b", 12.5), ("top-k c", 25.0)]
    assert activations.table.marked == 0
    assert "Attention and feed-forward layers have a chart each" in section.sentences[-1]
    assert "elements and 87.5 % of feed-forward activations; " in headline(found(cells[1]))[1]
    column = HEADER.index("feed-forward saved, %")
    assert [row[column] for row in cells_section(cells, None).tables[0].rows] == [None, 87.5, 75.0]
    assert largest_saving(cells) == cells[1]
    section = pareto_section([replace(cell("d"), saved=(Saved(0.9, ACTIVATIONS),))], None)
    assert section is not None
    assert [figure.name for figure in section.figures] == ["pareto"]


def test_what_cannot_be_compared_is_in_the_sentence_too() -> None:
    other = replace(cell("b"), saved=(Saved(0.5, SCORES),))
    sentence = headline(replace(searched(cell(), other, recommended="a"), others=("b",)))[1]
    assert sentence.endswith("Not to be compared with that: top-k b saves 50.0 % of attention scores.")
    assert "compared" not in headline(searched(cell(), other, recommended="a"))[1]


def test_points_have_one_decimal_on_the_page_alone() -> None:
    (table,) = cells_section([cell(accuracy=accuracy(-1.23456, dense=100.0))], None).tables
    texts = dict(zip(HEADER, (table.text(column, value) for column, value in enumerate(table.rows[0])), strict=True))
    assert (texts["difference"], texts["low"], texts["dense"], texts["saved, %"]) == ("-1.2", "-2.2", "100.0", "75.0")
    assert (texts["KL"], texts["feed-forward saved, %"]) == ("0.100", "–")
    assert b"-1.23456" in csv_bytes(table)
    assert table.text(HEADER.index("high"), -0.04) == "0.0"


def test_all_recipes_are_in_the_table() -> None:
    refused = cell("b", None, accuracy=None, decision="", reason="", error="it leaks")
    (table,) = cells_section([cell(speed=speed(1.25)), refused], None).tables
    first, second = (dict(zip(HEADER, row, strict=True)) for row in table.rows)
    assert first["saved, %"] == 75.0
    assert (first["dense"], first["patched"], first["times as fast"]) == (90.0, 90.0, "decode 1.25")
    assert (second["verdict"], second["why"], second["dense"]) == ("it leaks", "it leaks", None)


def test_kept_maps_and_bars() -> None:
    heads = tuple(Kept(f"enc.{n}.attn", 0.5, (0.25, 0.75)) for n in range(2))
    section = kept_section(cell(accuracy=accuracy(modules=(*heads, Kept("dec.0.mlp", 0.1, ())))))
    assert section is not None
    by_head, bars = section.figures
    assert (by_head.name, bars.name) == ("kept-enc-attn", "kept-dec-mlp")
    assert by_head.table.rows == ((0, 0, 25.0), (0, 1, 75.0), (1, 0, 25.0), (1, 1, 75.0))
    assert bars.table.rows == ((0, 10.0),)
    assert [value["share"] for value in values(by_head.chart)] == [0.25, 0.75, 0.25, 0.75]
    assert values(bars.chart) == [{"layer": "0", "share": 0.1}]
    assert kept_section(None) is None
    assert kept_section(cell(accuracy=accuracy(modules=()))) is None


def test_kept_maps_of_one_page_can_be_compared() -> None:
    modules = (Kept("enc.0.attn", 0.5, (0.25, 0.75)), Kept("dec.0.attn", 0.1, (0.125, 0.0625)))
    section = kept_section(cell(accuracy=accuracy(modules=modules)))
    assert section is not None
    colours = [spec(figure.chart)["layer"][0]["encoding"]["color"] for figure in section.figures]
    assert [colour["scale"]["domain"] for colour in colours] == [[0, 0.75]] * 2


def test_sensitivity_map() -> None:
    section = sensitivity_section(sensitivity())
    assert section is not None
    (figure,) = section.figures
    assert len(figure.table.rows) == 4 * 3
    assert figure.says == "The largest error is 0.08, of layer 3 at keep = 10 %."
    nothing = sensitivity() | {"modules": {"a.0": {"error": [0.0, 0.0, 0.0]}}}
    section = sensitivity_section(nothing)
    assert section is not None
    assert to_svg(section.figures[0].chart)
    assert sensitivity_section(None) is None


def test_flips_side_by_side() -> None:
    many = tuple(flip(f"q{n}") for n in range(SHOWN + 5))
    section = flips_section(cell(accuracy=accuracy(flips=(*many, flip("w", lost=False, passage="x" * 601)))))
    assert section is not None
    assert (len(section.lost), len(section.won)) == (SHOWN, 1)
    assert "30 of 8 answers that were right went wrong, and 1 that were wrong" in section.sentences[0]
    assert [one.folded for one in (*section.lost[:1], *section.won)] == [False, True]
    assert len(section.files[0].rows) == SHOWN + 6
    assert section.lost[0].passage == (("The ", False), ("barn", True), (" is ", False), ("red", True), (".", False))
    assert flips_section(cell(accuracy=accuracy(record={**DESCRIBED, "flips": None}))) is None


@pytest.mark.parametrize(
    ("passage", "answers", "expected"),
    [
        ("Anna and Annabel", ["anna"], ["Anna", "Anna"]),
        ("in May 1990", ["May", "May 1990", ""], ["May 1990"]),
        ("nothing here", ["barn"], []),
        ("İstanbul barn", ["barn"], []),
    ],
)
def test_answers_are_marked(passage: str, answers: list[str], expected: list[str]) -> None:
    pieces = marked(passage, answers)
    assert "".join(text for text, _ in pieces) == passage
    assert [text for text, is_answer in pieces if is_answer] == expected


def test_bench_charts_begin_with_the_recommended_recipe() -> None:
    cells = [cell(str(n), speed=speed(1.0 + n)) for n in range(MOST_CHARTS + 2)]
    section = bench_section(cells, cells[3])
    assert section is not None
    assert section.figures[0].title == "Speed of top-k 3"
    assert len(section.figures) == MOST_CHARTS
    assert len(section.tables[0].rows) == len(cells)
    assert section.figures[0].table.rows[0] == ("top-k 3", "decode", 100, 4.0, 3.9, 4.1, 5.0)
    assert bench_section([cell()], None) is None


def test_what_to_type_again() -> None:
    section = reproduce_section([found(cell(), cell("b")), searched(cell())])
    assert section.commands == ("sparsify eval",)
    data, environment = section.tables
    assert data.rows == (("mine", "dev", "8", "0", "abc"),)
    assert environment.rows == (("torch", "2"), ("processor", "some"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            searched(cell(), recommended="a"),
            ("PASS", "model with top-k a: saves 75.0 % of attention elements; the drop"),
        ),
        (
            searched(cell(decision="FAIL", reason="the drop is large")),
            ("NONE PASSED", "No setting of model is shown to stay within a drop of at most 2.0 points; with top-k a"),
        ),
        (searched(cell(decision="")), ("NONE PASSED", "none of 1 could be tested")),
        (
            searched(cell(), cell("b", decision=""), ended=False),
            ("NOT ENDED", "yet: 1 of 2 were tested and the sweep"),
        ),
        (found(cell(decision="FAIL", reason="the drop is large")), ("FAIL", "elements; the drop is large.")),
        (found(cell(accuracy=None, speed=speed(1.0))), ("", "here was timed and not evaluated")),
    ],
)
def test_the_sentence_on_top(found: Any, expected: tuple[str, str]) -> None:
    decision, sentence = headline(found)
    assert decision == expected[0]
    assert expected[1] in sentence


def test_the_largest_saving_of_those_that_passed() -> None:
    cells = (cell("a", 0.5), cell("b", 0.9, decision="INCONCLUSIVE"), cell("c", 0.8), cell("d", None))
    best = largest_saving(cells)
    assert best is not None
    assert best.name == "c"
    assert largest_saving(tuple(replace(one, decision="FAIL") for one in cells)) is None


def test_csv_keeps_digits_and_starts_no_formula() -> None:
    table = Table("t", "A table", ("a", "b"), (("=1+1", 0.123456789), (None, -2.5), ("a, b\n", "@x")))
    assert csv_bytes(table).decode() == "a,b\r\n'=1+1,0.123456789\r\n,-2.5\r\n\"a, b\n\",'@x\r\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0.0, "0"),
        (12345.6, "12,346"),
        (3.14159, "3.14"),
        (0.00123, "0.00123"),
        (-8.0, "-8.00"),
        (1200, "1,200"),
    ],
)
def test_numbers_in_tables(value: float | None, expected: str) -> None:
    assert shown(value) == expected


def test_file_names_are_different() -> None:
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
