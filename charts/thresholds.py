"""Thresholds over row length, one small chart per module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt

from .theme import BLUE, DENSE

MOST_LINES = 8  # heads that are drawn as lines of their own; more are a band
LEAST_WEIGHT = 1e-8  # weights below this one are drawn as this: no output shows them

# Placement -> what is compared with a threshold.
_COMPARED = {"post-softmax": "weight", "max-relative": "score less the row's highest", "pre-softmax": "score"}


@dataclass(frozen=True)
class ThresholdCurves:
    """One module's thresholds. label: for its title. lengths [T]; theta [H][T], in units of the score.

    shortest, longest: the rows that have a threshold. placement: as in ModuleThresholds.
    """

    label: str
    lengths: Sequence[float]
    theta: Sequence[Sequence[float]]
    shortest: int
    longest: int
    placement: str


def thresholds_rows(curves: Sequence[ThresholdCurves]) -> list[dict[str, Any]]:
    """A row for each module and length: mean over heads, 5th and 95th percentile.

    Of post-softmax thresholds, which are logarithms, the weight itself.
    """
    rows = []
    for curve in map(_to_the_ends, curves):
        shown = [[_shown(theta, curve.placement) for theta in head] for head in curve.theta]
        for index, length in enumerate(curve.lengths):
            heads = sorted(head[index] for head in shown)
            mean = _shown(sum(head[index] for head in curve.theta) / len(heads), curve.placement)
            low, high = _percentile(heads, 0.05), _percentile(heads, 0.95)
            rows.append({"module": curve.label, "length": length, "mean": mean, "p5": low, "p95": high})
    return rows


def thresholds_chart(curves: Sequence[ThresholdCurves], title: str, subtitle: str) -> alt.FacetChart:
    """Small multiples, modules in the order given: the mean over heads, and each head or the band of nine in ten.

    Grey is outside the calibrated range, where rows use their own exact top-k.
    """
    placement = curves[0].placement
    few = max(len(curve.theta) for curve in curves) <= MOST_LINES
    shortest, longest = min(curve.shortest for curve in curves), max(curve.longest for curve in curves)
    margin = max(1.02, (longest / shortest) ** 0.12)
    least, most = shortest / margin, longest * margin
    columns, width, height = _grid(len(curves))
    x = alt.X(
        "length:Q",
        title="keys that a row sees",
        scale=alt.Scale(type="log", domain=[least, most], nice=False),
        axis=alt.Axis(values=_ticks(shortest, longest, width), grid=False, format="d"),
    )
    rows = _data(curves, few, least, most)
    shown = [row[name] for row in rows for name in ("mean", "p5", "p95", "theta") if name in row]
    scale, ticks = _y(shown, placement)
    base = alt.Chart().encode(x=x)
    heads = _lines(base, scale, ticks) if few else _band(base, scale, ticks)
    mean = base.mark_line(color=BLUE, strokeWidth=2)
    mean = mean.encode(y=alt.Y("mean:Q", scale=scale, axis=ticks)).transform_filter("isValid(datum.mean)")
    outside = alt.Chart().mark_rect(style=DENSE, opacity=0.2).encode(x="from:Q", x2="to:Q")
    layers = [outside.transform_filter("isValid(datum.from)"), heads, mean]
    return (
        alt.layer(*layers, data=alt.Data(values=rows))
        .properties(width=width, height=height)
        .facet(
            facet=alt.Facet("module:N", sort=[curve.label for curve in curves], title=None),
            columns=columns,
            spacing=18,
            title=alt.TitleParams(title, subtitle=[subtitle, *_legend(placement, few, min(shown))]),
        )
        .resolve_scale(y="shared" if placement == "post-softmax" else "independent")
    )


def _legend(placement: str, few: bool, lowest: float) -> list[str]:
    """What is to be seen, in words."""
    about = "thin: each head" if few else "band: 5th to 95th percentile of the heads"
    below = placement == "post-softmax" and lowest < LEAST_WEIGHT
    cut = "; those below 1e-8 are drawn there" if below else ""
    return [
        f"a key is kept where its {_COMPARED[placement]} is above the threshold{cut}",
        f"thick: mean of the heads; {about}; grey: no threshold, rows use their exact top-k",
    ]


def _y(shown: Sequence[float], placement: str) -> tuple[alt.Scale, alt.Axis]:
    """Scale and axis: of weights whole powers of ten, at most five of them with a line."""
    if placement != "post-softmax":
        return alt.Scale(zero=False, nice=True), alt.Axis(title="threshold", tickCount=4)
    low, high = (math.log10(max(LEAST_WEIGHT, end)) for end in (min(shown), max(shown)))
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    powers = [10.0**power for power in range(last, first - 1, -math.ceil((last - first) / 4))]
    scale = alt.Scale(type="log", domain=[10.0**first, 10.0**last], clamp=True)
    return scale, alt.Axis(title="threshold", values=powers, format="~e")


def _data(curves: Sequence[ThresholdCurves], few: bool, least: float, most: float) -> list[dict[str, Any]]:
    """All layers in one table, because facets have one."""
    rows = thresholds_rows(curves)
    for curve in map(_to_the_ends, curves):
        rows.append({"module": curve.label, "from": least, "to": curve.shortest})
        rows.append({"module": curve.label, "from": curve.longest, "to": most})
        for head, values in enumerate(curve.theta if few else ()):
            for length, theta in zip(curve.lengths, values, strict=True):
                shown = _shown(theta, curve.placement)
                rows.append({"module": curve.label, "length": length, "head": head, "theta": shown})
    return rows


def _to_the_ends(curve: ThresholdCurves) -> ThresholdCurves:
    """The same with the shortest and the longest row, which have the threshold of the length nearest to them."""
    left, right = curve.shortest < curve.lengths[0], curve.longest > curve.lengths[-1]
    lengths = [*([curve.shortest] * left), *curve.lengths, *([curve.longest] * right)]
    theta = [[*(head[:1] * left), *head, *(head[-1:] * right)] for head in map(list, curve.theta)]
    return replace(curve, lengths=lengths, theta=theta)


def _lines(base: alt.Chart, scale: alt.Scale, ticks: alt.Axis) -> alt.Chart:
    y = alt.Y("theta:Q", scale=scale, axis=ticks)
    return (
        base.mark_line(color=BLUE, strokeWidth=1, opacity=0.4)
        .encode(y=y, detail="head:N")
        .transform_filter("isValid(datum.theta)")
    )


def _band(base: alt.Chart, scale: alt.Scale, ticks: alt.Axis) -> alt.Chart:
    band = base.mark_area(color=BLUE, opacity=0.25)
    return band.encode(y=alt.Y("p5:Q", scale=scale, axis=ticks), y2="p95:Q").transform_filter("isValid(datum.p5)")


def _grid(count: int) -> tuple[int, int, int]:
    """Columns, and the width and height of each small chart."""
    if count <= 4:
        return min(count, 2), 280, 180
    return (3, 220, 140) if count <= 12 else (5, 150, 100)


def _ticks(shortest: int, longest: int, width: int) -> list[int]:
    """Round row lengths in the range, as many as have room; its ends where there are no two of them."""
    rounds = [step * 10**power for power in range(8) for step in (1, 2, 5)]
    found = [length for length in rounds if shortest <= length <= longest]
    if len(found) < 2:
        found = sorted({shortest, longest})
    return found[:: -(-len(found) * 44 // width)]


def _shown(theta: float, placement: str) -> float:
    return math.exp(theta) if placement == "post-softmax" else theta


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    """Between neighbours in proportion."""
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
