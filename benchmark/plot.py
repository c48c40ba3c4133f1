"""The chart of a benchmark: how many times faster than dense, over the length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..charts.extra import charts_installed

if TYPE_CHECKING:
    import altair as alt

FASTER = "dense time / patched time"
MEASURED, PERFECT = "measured", "perfect kernel"


def plot_ratios(results: dict[str, Any], path: Path) -> bool:
    """Draws the ratios of all phases, their quartiles and the ceiling of each. False without the extra `plot`."""
    if not charts_installed():
        return False
    from ..charts.files import save_png

    save_png(ratio_chart(results), path)
    return True


def ratio_points(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For every phase and length dense time / patched time with its quartiles, and the ceiling of a perfect kernel."""
    return [
        {
            "phase": phase,
            "tokens": entry["tokens"],
            "ratio": found["ratio"]["median"],
            "low": found["ratio"]["low"],
            "high": found["ratio"]["high"],
            "ceiling": found["ceiling"],
        }
        for entry in results["lengths"]
        for phase, found in entry["phases"].items()
    ]


def ratio_chart(results: dict[str, Any]) -> alt.LayerChart:
    """Lines with quartiles for each phase, dotted ones for perfect kernels, and dense as the line at 1."""
    import altair as alt

    from ..charts.theme import DENSE, HEIGHT, WIDTH

    points = ratio_points(results)
    phases = list(dict.fromkeys(point["phase"] for point in points))
    x, y, colour = _axes(points, phases)
    data = alt.Chart(alt.Data(values=points))
    lines = alt.Chart(alt.Data(values=_lines(points)))
    dashes = alt.StrokeDash("what:N", title=None, sort=[MEASURED, PERFECT]).scale(
        domain=[MEASURED, PERFECT], range=[[1, 0], [3, 3]]
    )
    dense = alt.Chart(alt.Data(values=[{"ratio": 1, "what": "dense"}]))
    tooltip = [
        alt.Tooltip("phase:N"),
        alt.Tooltip("tokens:Q", format=","),
        *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("ratio", "low", "high", "ceiling")),
    ]
    return alt.layer(
        dense.mark_rule(style=DENSE, strokeWidth=2).encode(y=y),
        dense.mark_text(style=DENSE, align="left", dx=6).encode(x=alt.value("width"), y=y, text="what:N"),
        lines.mark_line().encode(x=x, y=y, color=colour.legend(None), strokeDash=dashes),
        data.mark_rule().encode(x=x, y=alt.Y("low:Q", title=FASTER), y2="high:Q", color=colour.legend(None)),
        data.mark_point(filled=True, size=80).encode(
            x=x, y=y, color=colour, shape=alt.Shape("phase:N", title=None).scale(domain=phases), tooltip=tooltip
        ),
        width=WIDTH,
        height=HEIGHT,
        title=alt.Title(f"{results['model']}: {results['method']}"),
        # One legend, of the points, with colour and shape.
    ).resolve_scale(color="independent", shape="independent")


def _axes(points: list[dict[str, Any]], phases: list[str]) -> tuple[alt.X, alt.Y, alt.Color]:
    import altair as alt

    lengths = sorted({point["tokens"] for point in points})
    x = alt.X("tokens:Q", title="tokens", axis=alt.Axis(values=lengths, format=","))
    y = alt.Y("ratio:Q", title=FASTER, scale=alt.Scale(zero=False))
    return x.scale(type="log", base=2, nice=False), y, alt.Color("phase:N", title=None).scale(domain=phases)


def _lines(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of the lines: what was measured, and the ceiling where there is one."""
    found = []
    for what, name in ((MEASURED, "ratio"), (PERFECT, "ceiling")):
        found += [
            {"phase": point["phase"], "tokens": point["tokens"], "what": what, "ratio": point[name]}
            for point in points
            if point[name] is not None
        ]
    return found
