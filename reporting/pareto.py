"""What is kept, or how long it takes, against what is lost: one point for each recipe, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..charts.theme import BUDGET, DENSE, FRONTIER, HEIGHT, RECOMMENDED, WIDTH
from ..evaluation.verdict.gate import FAIL, INCONCLUSIVE, PASS
from .found import Accuracy, Cell
from .parts import Figure, Section, Table

NOT_TESTED = "NOT TESTED"
# Filled shapes of equal weight; who sees no colours reads the verdict from them.
SHAPES = {PASS: "circle", FAIL: "triangle-down", INCONCLUSIVE: "diamond", NOT_TESTED: "square"}
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
Point = dict[str, Any]


def pareto_section(cells: Sequence[Cell], best: Cell | None) -> Section | None:
    """A chart of what is kept for every set of items, and one for each phase that was timed; None without a point."""
    figures: list[Figure] = []
    for number, asked in enumerate(dict.fromkeys(_asked(cell.accuracy) for cell in cells if cell.accuracy), start=1):
        nth = f"-{number}" if number > 1 else ""
        same = [cell for cell in cells if cell.accuracy and _asked(cell.accuracy) == asked]
        figures += _kept_figures(same, best, nth)
        for phase in dict.fromkeys(phase for cell in same if cell.speed for phase in cell.speed.longest()):
            timed = [_timed_point(cell, best, phase) for cell in same if cell.speed and phase in cell.speed.longest()]
            if len(timed) > 1:
                title = f"Time of {phase} and what is lost"
                figures.append(_figure(f"time of {phase}, % of dense", timed, same, f"pareto-{phase}{nth}", title))
    if not figures:
        return None
    shapes = "circle PASS, triangle FAIL, diamond INCONCLUSIVE, square NOT TESTED"
    said: tuple[str, ...] = (
        "Every point is one recipe, with the 95 % interval of its difference from the dense model, which is the grey "
        "cross; what may be lost ends at the dashed line. A recipe passes when its whole interval is above that "
        f"line. Shapes: {shapes}. The wide band runs along the recipes that no other beats both ways; the ring is the "
        "recommended one.",
    )
    if any(cell.also_saved for cell in cells):
        said += (
            "Attention and feed-forward layers have a chart each. A recipe that makes both sparse is in both: what it "
            "loses, it loses for both.",
        )
    return Section("pareto", "What is saved and what is lost", said, tuple(figures))


def _kept_figures(cells: Sequence[Cell], best: Cell | None, nth: str) -> list[Figure]:
    """One chart of what attention keeps and one of what feed-forward layers keep, of the recipes that change it."""
    attention = [(cell, cell.saved[0]) for cell in cells if cell.saved and cell.saved[0].is_attention]
    activations = [(cell, one) for cell in cells if (one := cell.activations_saved)]
    charts = []
    for name, group in (("pareto", attention), ("pareto-feed-forward" if attention else "pareto", activations)):
        of = ", ".join(dict.fromkeys(saved.of for _, saved in group))
        charts.append((name, of, [_point(cell, best, 100 * (1 - saved.share)) for cell, saved in group]))
    both = bool(attention and activations)
    return [
        _figure(f"kept of {of}, %", points, cells, f"{name}{nth}", f"What is kept{f' of {of}' * both} and what is lost")
        for name, of, points in charts
        if points
    ]


def _asked(accuracy: Accuracy | None) -> tuple[str, ...]:
    """Only recipes that were asked the same, and may lose the same, are points of one chart."""
    return (accuracy.data, accuracy.metric, accuracy.verdict.margin) if accuracy else ()


def _point(cell: Cell, best: Cell | None, x: float) -> Point:
    accuracy = cell.accuracy
    known = {} if accuracy is None else {"y": accuracy.difference, "low": accuracy.low, "high": accuracy.high}
    decision = cell.decision or NOT_TESTED
    return {"x": x, "label": cell.label, "chain": cell.chain, "verdict": decision, **known} | {
        "recommended": cell == best
    }


def _timed_point(cell: Cell, best: Cell | None, phase: str) -> Point:
    timed = cell.speed.longest()[phase] if cell.speed else None
    return _point(cell, best, 100 / timed.median if timed and timed.median else 0.0)


def _figure(axis: str, points: list[Point], cells: Sequence[Cell], name: str, title: str) -> Figure:
    accuracy = next(cell.accuracy for cell in cells if cell.accuracy)
    lost = f"{accuracy.metric}, patched less dense (points)"
    best = next((point["label"] for point in points if point["recommended"]), None)
    says = (
        f"{len(points)} recipe{'s' * (len(points) != 1)} on {accuracy.data}: {axis}, against {lost}; at most "
        f"{accuracy.budget:.3g} points may be lost. {f'Recommended: {best}.' if best else 'None is recommended.'}"
    )
    sizes = sorted({cell.accuracy.items for cell in cells if cell.accuracy})
    counts = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    chart = _chart(axis, lost, points, accuracy.budget).properties(
        title=alt.Title(title, subtitle=f"{counts} items of {accuracy.data}"), description=says
    )
    header = ("recipe", "method", axis, lost, "low", "high", "verdict")
    columns = ("label", "chain", "x", "y", "low", "high", "verdict")
    rows = tuple(tuple(point[column] for column in columns) for point in points)
    marked = next((index for index, point in enumerate(points) if point["recommended"]), None)
    table = Table(name, f"{title}, {accuracy.data}", header, rows, marked, one_decimal=header[2:6])
    return Figure(name, title, says, chart, table)


def _chart(axis: str, lost: str, points: list[Point], budget: float) -> alt.LayerChart:
    data = alt.Chart(alt.Data(values=points))
    x = alt.X("x:Q", title=axis, scale=alt.Scale(domainMin=0, nice=True))
    y = alt.Y("y:Q", title=lost, scale=alt.Scale(nice=True, padding=6))
    chains = list(dict.fromkeys(point["chain"] for point in points))
    colour = alt.Color("chain:N", title=None, scale=alt.Scale(domain=chains))
    plain = colour.legend(None)
    dash = alt.StrokeDash("chain:N", title=None, scale=alt.Scale(domain=chains, range=_dashes(chains)))
    verdicts = [verdict for verdict in SHAPES if any(point["verdict"] == verdict for point in points)]
    shapes = alt.Scale(domain=verdicts, range=[SHAPES[verdict] for verdict in verdicts])
    tooltip = [
        alt.Tooltip("label:N", title="recipe"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("x:Q", title=axis, format=".1f"),
        alt.Tooltip("y:Q", title=lost, format="+.1f"),
        alt.Tooltip("low:Q", format="+.1f"),
        alt.Tooltip("high:Q", format="+.1f"),
    ]
    frontier = alt.Chart(alt.Data(values=_frontier(points)))
    levels = [{"x": 100, "y": 0, "what": "dense"}, {"x": 100, "y": -budget, "what": "allowed"}]
    dense, allowed = (alt.Chart(alt.Data(values=[level])) for level in levels)
    ring = [
        alt.Chart(alt.Data(values=[point])).mark_point(style=RECOMMENDED, size=420, shape="circle", filled=False)
        for point in points
        if point["recommended"]
    ]
    at_the_end = {"x": alt.value("width"), "y": y, "text": "what:N"}
    return alt.layer(
        dense.mark_rule(style=DENSE, strokeWidth=2).encode(y=y),
        dense.mark_point(style=DENSE, filled=True, size=90, shape="cross").encode(x=x, y=y),
        dense.mark_text(style=DENSE, align="left", baseline="bottom", dx=6).encode(**at_the_end),
        allowed.mark_rule(style=BUDGET).encode(y=y),
        allowed.mark_text(align="left", baseline="top", dx=6).encode(**at_the_end),
        frontier.mark_line(style=FRONTIER).encode(x=x, y=y),
        data.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour, strokeDash=dash),
        data.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", title=lost), y2="high:Q", color=plain),
        data.mark_point(filled=True, size=90).encode(
            x=x, y=y, color=plain, shape=alt.Shape("verdict:N", title=None, scale=shapes), tooltip=tooltip
        ),
        *(mark.encode(x=x, y=y) for mark in ring),
        width=WIDTH,
        height=HEIGHT,
        # One legend for the lines, with colour and dashes.
    ).resolve_scale(color="independent", strokeDash="independent")


def _dashes(chains: list[str]) -> list[list[int]]:
    return [list(DASHES[index % len(DASHES)]) for index in range(len(chains))]


def _frontier(points: list[Point]) -> list[Point]:
    """Those that no other point beats: sparser and better, from the sparsest on."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point["x"], -point["y"])):
        if not found or point["y"] > found[-1]["y"]:
            found.append(point)
    return [{"x": point["x"], "y": point["y"]} for point in found]
