"""What was kept: a heat map over layers and heads, and bars over layers where heads are not told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from .theme import BLUE, KEPT_SCHEME

MOST_NUMBERS = 12  # columns of a heat map that still have room for numbers
WIDE, NARROW, BARS = 40, 18, 420  # pixels of a column with and without numbers, and of bars
DARK = 0.6  # of the highest share: from here on numbers are white


@dataclass(frozen=True)
class KeptHeads:
    """The kept share of each query head of one module. group: such as "decoder self"; layer: its number or name."""

    group: str
    layer: str
    shares: Sequence[float | None]


@dataclass(frozen=True)
class LayerShare:
    """The kept or computed share of one module."""

    group: str
    layer: str
    share: float


def kept_rows(modules: Sequence[KeptHeads]) -> list[dict[str, Any]]:
    """A row for each module and head that has a share."""
    return [
        {"group": module.group, "layer": module.layer, "head": head, "share": share}
        for module in modules
        for head, share in enumerate(module.shares)
        if share is not None
    ]


def highest(modules: Sequence[KeptHeads]) -> float:
    """The largest share, where the colours of maps that are to be compared end."""
    return max(row["share"] for row in kept_rows(modules))


def kept_chart(modules: Sequence[KeptHeads], title: str, subtitle: list[str]) -> alt.VConcatChart:
    """A heat map for each group, layers in the order given from top to bottom, heads from left to right."""
    most, heads = highest(modules), max(len(module.shares) for module in modules)
    cell = alt.Step(WIDE if heads <= MOST_NUMBERS else NARROW)
    maps = [
        heat_map(members, most, width=cell, numbers=heads <= MOST_NUMBERS).properties(title=_heading(name))
        for name, members in _groups(modules).items()
    ]
    return alt.vconcat(*maps, title=alt.TitleParams(title, subtitle=subtitle), spacing=16)


def share_chart(modules: Sequence[LayerShare], title: str, subtitle: list[str], axis: str) -> alt.VConcatChart:
    """Bars over layers for each group. axis: what the share is of."""
    groups = _groups(modules).items()
    bars = [share_bars(members, axis, width=BARS).properties(title=_heading(name)) for name, members in groups]
    return alt.vconcat(*bars, title=alt.TitleParams(title, subtitle=subtitle), spacing=16)


def heat_map(
    members: Sequence[KeptHeads], most: float, *, width: int | alt.Step, numbers: bool
) -> alt.LayerChart | alt.FacetChart:
    """One group. most: where the colours end. width: of all, or of a column. numbers: whether they are in the cells."""
    color = alt.Color(
        "share:Q",
        title="kept share of long rows",
        scale=alt.Scale(scheme=KEPT_SCHEME, domain=[0, most]),
        legend=alt.Legend(format=".0%" if most >= 0.05 else ".1%", gradientLength=200),
    )
    base = alt.Chart(alt.Data(values=kept_rows(members))).encode(
        x=alt.X(
            "head:O", title="query head", axis=alt.Axis(labelAngle=0, labelOverlap=True, domain=False, ticks=False)
        ),
        y=_layers(members),
        tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("head:O"), alt.Tooltip("share:Q", title="kept", format=".1%")],
    )
    layers = [base.mark_rect().encode(color=color)]
    if numbers:
        shade = alt.condition(alt.datum.share > DARK * most, alt.value("#ffffff"), alt.value("#1b1f24"))
        layers.append(base.mark_text(fontSize=11).encode(text=alt.Text("share:Q", format=".1%"), color=shade))
    return alt.layer(*layers, width=width, height=alt.Step(22 if numbers else 18))


def share_bars(members: Sequence[LayerShare], axis: str, *, width: int) -> alt.Chart:
    """One group. axis: what the share is of."""
    rows = [{"layer": module.layer, "share": module.share} for module in members]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X("share:Q", title=axis, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
            y=_layers(members),
            tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("share:Q", title=axis, format=".1%")],
        )
        .properties(width=width, height=alt.Step(18))
    )


def _groups(modules: Sequence[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for module in modules:
        groups.setdefault(module.group, []).append(module)
    return groups


def _layers(members: Sequence[Any]) -> alt.Y:
    order = [module.layer for module in members]
    return alt.Y("layer:N", title="layer", sort=order, axis=alt.Axis(domain=False, ticks=False, labelLimit=320))


def _heading(name: str) -> alt.TitleParams:
    return alt.TitleParams(name, fontSize=13, offset=6)
