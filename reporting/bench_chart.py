"""How fast the patched models are, over the length, with what a perfect kernel would reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from ..benchmark.plot import ratio_chart
from .found import Cell, Speed
from .parts import Figure, Section, Table, numbered

MOST_CHARTS = 4  # of a search: more say no more than the table
HEADER = (
    "recipe",
    "phase",
    "tokens",
    "dense time / patched time",
    "quartile 1",
    "quartile 3",
    "perfect kernel",
)


def bench_section(cells: Sequence[Cell], best: Cell | None) -> Section | None:
    """A chart for each recipe that was timed, the recommended one first; None if none was."""
    timed = [(cell, cell.speed) for cell in cells if cell.speed]
    if not timed:
        return None
    timed.sort(key=lambda pair: pair[0] is not best)
    names = numbered(["speed"] * len(timed))
    figures = [_figure(name, *pair) for name, pair in zip(names[:MOST_CHARTS], timed, strict=False)]
    said = [
        "Above 1 the patched model is faster than the dense one on the same tokens. Bars are quartiles of the runs; "
        "the dotted line is what would be reached if all that is patched took no time at all.",
    ]
    tables: tuple[Table, ...] = ()
    if len(timed) > MOST_CHARTS:
        said.append(f"{len(timed)} recipes were timed; the first {MOST_CHARTS} are drawn, the table holds all.")
        rows = tuple(row for cell, speed in timed for row in _rows(cell, speed))
        tables = (Table("speed-all", "All times", HEADER, rows),)
    return Section("speed", "How fast it is", tuple(said), tuple(figures), tables)


def _figure(name: str, cell: Cell, speed: Speed) -> Figure:
    says = " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in speed.sentences)
    title = f"Speed of {cell.label}"
    chart = ratio_chart(speed.record).properties(description=f"{title}: {says}")
    return Figure(name, title, says, chart, Table(name, title, HEADER, _rows(cell, speed)))


def _rows(cell: Cell, speed: Speed) -> tuple[tuple[str | int | float | None, ...], ...]:
    return tuple((cell.label, *astuple(point)) for point in speed.points)
