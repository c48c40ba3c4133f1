"""How charts look: colours that colour-blind people can tell apart, on white and on dark; dense is always grey."""

from __future__ import annotations

from typing import Any, Final

# Okabe & Ito 2008, without yellow, which white paper swallows, and without black, which dark paper swallows.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, VERMILION = "#CC79A7", "#56B4E9", "#D55E00"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
SERIES_ON_DARK = (SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILION)
# In the order of the series: who cannot tell the colours apart tells the shapes apart.
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# Of heat maps: one hue from light to dark, which every eye orders alike.
KEPT_SCHEME: Final = "blues"
ERROR_SCHEME: Final = "oranges"
# Marks with these styles (mark_rule(style="dense")) look right on either paper.
DENSE, BUDGET, RECOMMENDED, FRONTIER = "dense", "budget", "recommended", "frontier"

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
LABEL_SIZE, TITLE_SIZE, HEADING_SIZE = 12, 13, 15
WIDTH, HEIGHT = 640, 340  # pixels of a chart that stands alone

_LIGHT = {"paper": "#ffffff", "ink": "#1b1f24", "quiet": "#57606a", "line": "#d0d7de", "dense": "#6e7781"}
_DARK = {"paper": "#16191d", "ink": "#e6e8eb", "quiet": "#a3abb4", "line": "#3a414a", "dense": "#9aa4ae"}


def config(*, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite configuration of every chart, for white or for dark paper."""
    tone = _DARK if dark else _LIGHT
    return {
        "background": tone["paper"],
        "font": FONT,
        "view": {"stroke": None},
        "title": {
            "color": tone["ink"],
            "subtitleColor": tone["quiet"],
            "fontSize": HEADING_SIZE,
            "subtitleFontSize": LABEL_SIZE,
            "anchor": "start",
            "offset": 14,
        },
        "axis": {
            "labelColor": tone["ink"],
            "titleColor": tone["ink"],
            "labelFontSize": LABEL_SIZE,
            "titleFontSize": TITLE_SIZE,
            "titleFontWeight": "normal",
            "titlePadding": 10,
            "gridColor": tone["line"],
            "gridOpacity": 0.6,
            "domainColor": tone["quiet"],
            "tickColor": tone["quiet"],
        },
        "legend": {
            "labelColor": tone["ink"],
            "titleColor": tone["ink"],
            "labelFontSize": LABEL_SIZE,
            "titleFontSize": LABEL_SIZE,
            "labelLimit": 260,
            "orient": "bottom",
            "symbolStrokeWidth": 2,
            # Of symbols whose colour says nothing.
            "symbolBaseFillColor": tone["ink"],
            "symbolBaseStrokeColor": tone["ink"],
        },
        "header": {"labelColor": tone["ink"], "titleColor": tone["ink"], "labelFontSize": LABEL_SIZE},
        "axisQuantitative": {"tickCount": 8, "labelFlush": False, "labelOverlap": "greedy", "labelSeparation": 4},
        "range": {"category": list(SERIES_ON_DARK if dark else SERIES), "symbol": list(SHAPES)},
        "bar": {"color": (SERIES_ON_DARK if dark else SERIES)[0]},
        "point": {"opacity": 1, "filled": True, "size": 70},
        "text": {"font": FONT, "fontSize": LABEL_SIZE, "color": tone["ink"]},
        "style": {
            DENSE: {"color": tone["dense"]},
            BUDGET: {"color": tone["ink"], "strokeDash": [6, 4]},
            FRONTIER: {"color": tone["ink"], "strokeWidth": 8, "opacity": 0.12},
            RECOMMENDED: {"color": tone["ink"], "strokeWidth": 2, "filled": False},
        },
    }
