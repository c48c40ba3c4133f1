"""Charts as files, without a browser and without a network."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pytest
from hf_sparsify.charts.files import Chart, javascript, save_png, spec, to_svg

HOSTILE = "</text><script>alert(1)</script> & \"x\" 'y'"


def chart(label: str = "a") -> Chart:
    values = [{"x": number, "y": number**2, "name": label} for number in range(3)]
    made: Chart = alt.Chart(alt.Data(values=values)).mark_point().encode(x="x:Q", y="y:Q", color="name:N")
    return made


def test_png(tmp_path: Path) -> None:
    save_png(chart(), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_svg_holds_every_point_and_hostile_text_as_text() -> None:
    drawn = to_svg(chart(HOSTILE))
    root = ElementTree.fromstring(drawn)
    marks = [one for one in root.iter() if one.get("aria-roledescription") == "point"]
    assert len(marks) == 3
    assert HOSTILE in "".join(root.itertext())
    assert not [one for one in root.iter() if one.tag.endswith("script")]


def test_ids_differ_within_a_page() -> None:
    shaded = alt.Chart(alt.Data(values=[{"x": 1, "y": 2}])).mark_rect().encode(x="x:O", color="y:Q")
    drawn = to_svg(shaded, "a")
    assert re.findall(r'\bid="([^"]+)"', drawn) == ["a-0"]
    assert re.findall(r"url\(#([^)]+)\)", drawn) == ["a-0"]
    assert 'id="b-0"' in to_svg(shaded, "b")
    assert to_svg(shaded, "a") == drawn


def test_spec_has_its_data_and_no_look_of_its_own() -> None:
    made = spec(chart())
    assert "config" not in made
    assert len(made["data"]["values"]) == 3


def test_data_from_elsewhere_is_not_fetched() -> None:
    away = alt.Chart("https://example.org/data.json").mark_point().encode(x="x:Q")
    with pytest.raises(ValueError, match="not allowed"):
        to_svg(away)


def test_javascript_holds_the_snippet_and_its_libraries() -> None:
    script = javascript("window.drawn = vegaEmbed;")
    assert "window.drawn=" in script.replace(" ", "")
    assert len(script) > 100_000
    assert "import " not in script[:200]
