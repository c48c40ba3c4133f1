"""The attention pattern of one input: the weights of a few heads, dense beside patched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt

from .theme import VERMILION

MOST_LABELS = 40  # tokens that have room for their texts
MOST_CELLS = 96  # a side; longer sequences are drawn in blocks
LEAST_TITLED = 60  # pixels of an axis that has room for a title
LEAST_WEIGHT = 1e-4  # the bottom of the colour scale
SCHEME: Final = "yellowgreenblue"
DROPPED = "#d3d6db"

Table = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class HeadPattern:
    """One head's weights, [q][n] each. visible, kept, protected: of the patched model, whether a row may look at a key,
    keeps it, and would keep it in any case. label: for the title of its row of charts."""

    label: str
    dense: Table
    patched: Table
    visible: Table
    kept: Table
    protected: Table


def block_size(tokens: int) -> int:
    """How many tokens one cell stands for."""
    return math.ceil(tokens / MOST_CELLS)


def pattern_cells(head: HeadPattern) -> list[dict[str, Any]]:
    """A row for each visible cell and arm: the largest weight in its block of tokens, and how the patched model has it:
    "kept", "protected" or "dropped". A cell that no query sees is not there."""
    queries, keys = _shape(head)
    high, wide = block_size(queries), block_size(keys)
    cells = []
    for q in range(0, queries, high):
        for k in range(0, keys, wide):
            block = [(i, j) for i in range(q, min(q + high, queries)) for j in range(k, min(k + wide, keys))]
            if any(head.visible[i][j] for i, j in block):
                place = {"query": q // high, "key": k // wide}
                dense, patched = (max(table[i][j] for i, j in block) for table in (head.dense, head.patched))
                cells.append({**place, "arm": "dense", "weight": dense, "state": "dense"})
                cells.append({**place, "arm": "patched", "weight": patched, "state": _state(head, block)})
    return cells


def pattern_chart(
    heads: Sequence[HeadPattern], title: str, queries: Sequence[str] | None, keys: Sequence[str] | None
) -> alt.VConcatChart:
    """Heads of one module from top to bottom, dense left and patched right. queries, keys: the texts of the tokens,
    drawn where there are few of them."""
    cells = [pattern_cells(head) for head in heads]
    rows = [_row(head, found, queries, keys) for head, found in zip(heads, cells, strict=True)]
    states = {cell["state"] for found in cells for cell in found}
    return alt.vconcat(*rows, title=alt.TitleParams(title, subtitle=_subtitle(heads[0], states)), spacing=18)


def _row(
    head: HeadPattern, cells: list[dict[str, Any]], queries: Sequence[str] | None, keys: Sequence[str] | None
) -> alt.FacetChart:
    counts = [math.ceil(tokens / block_size(tokens)) for tokens in _shape(head)]
    size = [_cell(count, texts) for count, texts in zip(counts, (queries, keys), strict=True)]
    height = counts[0] * size[0]
    x = alt.X("key:O", title="key", scale=_band(counts[1]), axis=_axis(_shape(head)[1], keys, angle=-90))
    name = "query" if height > LEAST_TITLED else None
    y = alt.Y("query:O", title=name, scale=_band(counts[0]), axis=_axis(_shape(head)[0], queries, angle=0))
    base = alt.Chart().encode(x=x, y=y)
    weight = alt.Color(
        "weight:Q",
        title="weight",
        scale=alt.Scale(type="log", domain=[LEAST_WEIGHT, 1], clamp=True, scheme=SCHEME),
        legend=alt.Legend(values=[1e-4, 1e-3, 1e-2, 0.1, 1], format="~g", gradientLength=320),
    )
    layers = [
        base.mark_rect(color=DROPPED).transform_filter("datum.state == 'dropped'"),
        base.mark_rect().encode(color=weight).transform_filter("datum.state != 'dropped'"),
    ]
    if any(cell["state"] == "protected" for cell in cells):
        dot = base.mark_square(color=VERMILION, filled=True, opacity=1, size=max(1.0, (min(size) * 0.35) ** 2))
        layers.append(dot.transform_filter("datum.state == 'protected'"))
    return (
        alt.layer(*layers, data=alt.Data(values=cells))
        .properties(width=counts[1] * size[1], height=height)
        .facet(
            column=alt.Column("arm:N", title=None, sort=["dense", "patched"], header=alt.Header(labelPadding=4)),
            spacing=20,
            title=alt.TitleParams(head.label, fontSize=13, offset=4),
        )
    )


def _subtitle(head: HeadPattern, states: set[str]) -> list[str]:
    """What the colours are, of those that are there."""
    colours = []
    if "dropped" in states:
        colours.append("grey: dropped by the patched model")
    if "protected" in states:
        colours.append("red: protected keys, which are always kept")
    if not all(all(row) for row in head.visible):
        colours.append("empty: where a row may not look")
    lines = ["; ".join(colours)] if colours else []
    high, wide = (block_size(tokens) for tokens in _shape(head))
    if max(high, wide) > 1:
        lines.append(f"a cell is the largest weight of {high} x {wide} tokens; it is grey if none of them is kept")
    return lines


def _shape(head: HeadPattern) -> tuple[int, int]:
    return len(head.visible), len(head.visible[0])


def _state(head: HeadPattern, block: Sequence[tuple[int, int]]) -> str:
    if any(head.protected[i][j] for i, j in block):
        return "protected"
    return "kept" if any(head.kept[i][j] for i, j in block) else "dropped"


def _cell(count: int, texts: Sequence[str] | None) -> int:
    """Pixels of a side."""
    least = 13 if texts is not None and len(texts) <= MOST_LABELS else 4
    return max(least, min(24, 360 // count))


def _band(count: int) -> alt.Scale:
    return alt.Scale(domain=list(range(count)), paddingInner=0, paddingOuter=0)


def _axis(tokens: int, texts: Sequence[str] | None, angle: int) -> alt.Axis:
    """Texts where there is room for them, else every so many positions."""
    if texts is not None and tokens <= MOST_LABELS:
        return alt.Axis(
            labelExpr=f"{json.dumps(list(texts))}[datum.value]",
            labelAngle=angle,
            labelFontSize=10,
            labelLimit=90,
            labelOverlap=False,
            ticks=False,
            domain=False,
        )
    size = block_size(tokens)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if tokens / (step * size) <= 10)
    values = list(range(0, math.ceil(tokens / size), step))
    return alt.Axis(values=values, labelExpr=f"datum.value * {size}", labelAngle=0, domain=False)
