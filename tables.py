"""Tables as the commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def titled(title: str, table: Table) -> RenderableType:
    """A table under its title; unlike rich's own, the title is not squeezed into the table's width."""
    return Group(Text(title, style="bold"), table)


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> Table:
    """A table whose first text_columns are text and the others numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(header):
        # Names and numbers that are folded can no longer be searched for or read.
        text = index < text_columns
        table.add_column(column, justify="left" if text else "right", no_wrap=index == 0 or not text)
    for row in rows:
        table.add_row(*row)
    return table


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, without lines."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, value)
    return table


def percent(share: float | None) -> str:
    """0.123 -> "12.3 %"; "-" where there is nothing to show."""
    return "-" if share is None else f"{100 * share:.1f} %"
