"""What a page is made of: sections with sentences, figures and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..charts.files import Chart
from .found import Flip

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows below a header. name: of the CSV file. marked: the index of the row that stands out.

    one_decimal: columns whose numbers are shown so, whatever their size; the CSV file has all digits.
    """

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    marked: int | None = None
    one_decimal: tuple[str, ...] = ()

    def text(self, column: int, value: Value) -> str:
        """A value as the page shows it."""
        if isinstance(value, float) and math.isfinite(value) and self.header[column] in self.one_decimal:
            return f"{round(value, 1) + 0.0:.1f}"  # and not -0.0
        return shown(value)


@dataclass(frozen=True)
class Figure:
    """A chart with its data as a table. name: of the PNG file. says: what it shows, for who cannot see it."""

    name: str
    title: str
    says: str
    chart: Chart
    table: Table


@dataclass(frozen=True)
class Flipped:
    """One flip as it is shown. passage: pieces of the text, and whether each is an answer."""

    flip: Flip
    passage: tuple[tuple[str, bool], ...]
    folded: bool


@dataclass(frozen=True)
class Section:
    """A part of the page. name: its anchor. files: tables that are there as CSV alone.

    commands: what was typed. lost, won: answers that went wrong and right.
    """

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    lost: tuple[Flipped, ...] = ()
    won: tuple[Flipped, ...] = ()
    files: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()


def shown(value: Value) -> str:
    """A value as a table shows it: three significant digits, but no fewer than the whole number has."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else value
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def numbered(names: Sequence[str]) -> list[str]:
    """Names for files, each once: the second "a" is "a-2"."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return made
