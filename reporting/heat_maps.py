"""What each layer and head kept, and how much each layer minds, as maps and bars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import altair as alt

from ..charts.kept import MOST_NUMBERS, KeptHeads, LayerShare, heat_map, share_bars
from ..charts.theme import ERROR_SCHEME, WIDTH
from .found import Cell, Kept
from .parts import Figure, Section, Table, numbered

ROW = 22  # pixels of a layer's row
ORDERS = 1e6  # what the colours of errors tell apart
T = TypeVar("T")


def kept_section(cell: Cell | None) -> Section | None:
    """A map of each group of modules whose heads were counted, bars of the others; None where nothing was counted."""
    if cell is None or cell.accuracy is None or not cell.accuracy.modules:
        return None
    groups = _groups((kept.module, kept) for kept in cell.accuracy.modules)
    names = numbered([f"kept-{_stem(group)}" for group in groups])
    most = max((share for kept in cell.accuracy.modules for share in kept.heads), default=1.0)
    figures = [_kept_figure(name, most, *group) for name, group in zip(names, groups.items(), strict=True)]
    said = (f"What {cell.label} kept on the questions. A map shows each query head in rows longer than k.",)
    return Section("kept", "What each layer and head kept", said, tuple(figures))


def sensitivity_section(sensitivity: dict[str, Any] | None) -> Section | None:
    """A map of the error that each module makes when it alone is sparse; None where it was not measured."""
    if not sensitivity or not sensitivity["modules"]:
        return None
    groups = _groups((name, module) for name, module in sensitivity["modules"].items())
    names = numbered([f"sensitivity-{_stem(group)}" for group in groups])
    keeps = [float(keep) for keep in sensitivity["keeps"]]
    scale = _error_scale([float(error) for module in sensitivity["modules"].values() for error in module["error"]])
    figures = [_error_figure(name, keeps, scale, *group) for name, group in zip(names, groups.items(), strict=True)]
    said = (f"Measured on {sensitivity['items']} items. The error is the {sensitivity['error_is']}.",)
    return Section("sensitivity", "Which layers mind", said, tuple(figures))


def _groups(modules: Iterable[tuple[str, T]]) -> dict[str, list[tuple[int, T]]]:
    """Modules of one kind, by their name without the layer's number: a.3.b and a.4.b are layers 3 and 4 of a.*.b."""
    found: dict[str, list[tuple[int, T]]] = {}
    for name, module in modules:
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        group = f"{name[: number.start(1)]}*{name[number.end(1) :]}" if number else name
        found.setdefault(group, []).append((int(number[1]) if number else 0, module))
    return found


def _stem(group: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")[:60] or "module"


def _kept_figure(name: str, most: float, group: str, layers: Sequence[tuple[int, Kept]]) -> Figure:
    """most: the largest share of all heads; the maps of all groups can be compared."""
    title = f"Kept by {group}"
    rows: list[tuple[Any, ...]]
    header: tuple[str, ...]
    chart: Any
    if all(kept.heads for _, kept in layers):
        rows = [(layer, head, 100 * share) for layer, kept in layers for head, share in enumerate(kept.heads)]
        header = ("layer", "head", "kept, %")
        maps = [KeptHeads(group, str(layer), kept.heads) for layer, kept in layers]
        numbers = max(len(kept.heads) for _, kept in layers) <= MOST_NUMBERS
        chart = heat_map(maps, most, width=WIDTH, numbers=numbers)
    else:
        rows = [(layer, 100 * kept.share) for layer, kept in layers]
        header = ("layer", "kept, %")
        chart = share_bars([LayerShare(group, str(layer), kept.share) for layer, kept in layers], "kept", width=WIDTH)
    low, high = (choose(row[-1] for row in rows) for choose in (min, max))
    share = f"{low:.1f} %" if high - low < 0.05 else f"between {low:.1f} % and {high:.1f} %"
    says = f"{'Heads' if 'head' in header else 'Layers'} keep {share}."
    # A page that fits a chart to its width wants a height that is a number.
    height = ROW * max(2, len(layers))
    titled = chart.properties(title=title, description=f"{title}: {says}", height=height)
    return Figure(name, title, says, titled, Table(name, title, header, tuple(rows)))


def _error_scale(errors: Sequence[float]) -> alt.Scale:
    """One scale for all maps, so that they can be compared; what is a millionth of the largest error is none."""
    most = max(errors)
    least = max(most / ORDERS, min((error for error in errors if error > 0), default=0.0))
    if not 0 < least < most:
        return alt.Scale(scheme=ERROR_SCHEME)
    return alt.Scale(scheme=ERROR_SCHEME, type="log", domain=[least, most], clamp=True)


def _error_figure(
    name: str, keeps: list[float], scale: alt.Scale, group: str, layers: Sequence[tuple[int, dict[str, Any]]]
) -> Figure:
    title = f"Error of {group}"
    rows = tuple(
        (layer, f"{100 * keep:g} %", float(error))
        for layer, module in layers
        for keep, error in zip(keeps, module["error"], strict=True)
    )
    header = ("layer", "keep", "error")
    chart = _map(rows, header, scale, ".0e")
    worst = max(rows, key=lambda row: row[-1])
    says = f"The largest error is {worst[2]:.2g}, of layer {worst[0]} at keep = {worst[1]}."
    titled = chart.properties(title=title, description=f"{title}: {says}")
    return Figure(name, title, says, titled, Table(name, title, header, tuple(rows)))


def _map(rows: Sequence[tuple[Any, ...]], header: tuple[str, ...], scale: alt.Scale, digits: str) -> alt.Chart:
    values = [{"layer": layer, "column": column, "value": value} for layer, column, value in rows]
    columns = list(dict.fromkeys(value["column"] for value in values))
    layers = len({value["layer"] for value in values})
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("column:O", title=header[1], sort=columns, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="layer"),
        tooltip=[
            alt.Tooltip("layer:O"),
            alt.Tooltip("column:O", title=header[1]),
            alt.Tooltip("value:Q", title=header[2], format=digits),
        ],
    )
    legend = alt.Legend(gradientLength=160, format=digits)
    colour = alt.Color("value:Q", title=header[2], scale=scale, legend=legend)
    return base.mark_rect().encode(color=colour).properties(width=WIDTH, height=ROW * max(2, layers))
