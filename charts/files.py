"""From a chart to files: PNG and SVG without a browser, and the JavaScript that a page shows charts with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from ..files import write_file
from .theme import config

# What Vega gives an id and refers to: colour scales of legends, and what cuts marks off.
_ID = re.compile(r"""(\bid="|url\(#)((?:gradient_|clip)\d+)""")
PNG_SCALE = 2.0  # pixels of the file per pixel of the chart

Chart = alt.TopLevelMixin


def spec(chart: Chart) -> dict[str, Any]:
    """The chart as Vega-Lite, with its data inline and without a look of its own."""
    # Holding all data against the schema takes many times as long as drawing them; the tests do that.
    made: dict[str, Any] = chart.to_dict(validate=False)
    # The size that Altair gives to all charts would win over theme.py.
    made.pop("config", None)
    return made


def save_png(chart: Chart, path: Path) -> None:
    """Writes a chart as PNG, on white paper. The directory has to be there; OSError leaves the old file."""
    options: dict[str, Any] = {"vl_version": _version(), "config": config(), "allowed_base_urls": []}
    write_file(path, vl_convert.vegalite_to_png(spec(chart), scale=PNG_SCALE, **options))


def to_svg(chart: Chart, name: str = "chart") -> str:
    """The chart as an SVG element, on white paper. name: begins its ids, which differ within a page."""
    options: dict[str, Any] = {"vl_version": _version(), "config": config(), "allowed_base_urls": []}
    drawn = str(vl_convert.vegalite_to_svg(spec(chart), **options))
    # Vega counts on from chart to chart; numbered anew, the same chart is the same text.
    known = list(dict.fromkeys(found[2] for found in _ID.finditer(drawn)))
    return _ID.sub(lambda found: f"{found[1]}{name}-{known.index(found[2])}", drawn)


def javascript(snippet: str) -> str:
    """A script that needs no other: Vega, Vega-Lite and Vega-Embed (as vegaEmbed), and a module's code after them."""
    return str(vl_convert.javascript_bundle(snippet, vl_version=_version()))


def _version() -> str:
    """The version of Vega-Lite that the installed Altair writes, such as "6.1"."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
