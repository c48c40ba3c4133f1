"""Tables as text: CSV and TSV files, whose first line names the fields."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DataError
from .datasets.base import Record

# What a cell of these columns holds if it is no text; every other cell is text.
NUMBERS = {"label", "idx"}
TRUTHS = {"answer", "is_impossible"}
LISTS = {"answers", "choices", "endings"}


def read_table(text: str, name: str, delimiter: str) -> Iterator[Record]:
    """The rows of a table, as records. DataError for a table that is not regular."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    end = 0  # a quoted cell may hold line breaks: a row is named by the line that it begins on
    try:
        with _cells_of_any_size():
            rows = []
            for cells in lines:
                rows.append((end + 1, cells))
                end = lines.line_num
    except csv.Error as error:
        raise DataError(f"{name}: line {end + 1} is not part of a table: {error}") from error
    for number, cells in rows:
        where = f"line {number}"
        if not cells:
            continue
        if not header:
            header = _checked_header(cells, f"{name}: {where}")
        elif len(cells) != len(header):
            raise DataError(f"{name}: {where}: the row has {len(cells)} cells and the first line {len(header)}")
        else:
            yield where, {column: _value(column, cell) for column, cell in zip(header, cells, strict=True)}


def _checked_header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    for column in header:
        if header.count(column) > 1:
            raise DataError(f"{where}: the column {column!r} is there twice; the first line names the fields")
    return header


def _value(column: str, cell: str) -> Any:
    text = cell.strip()
    if column in NUMBERS and text.removeprefix("-").isdecimal():
        # Python refuses to read a number of thousands of digits, which is no label either.
        return int(text) if len(text) < 20 else cell
    if column in TRUTHS and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if column in LISTS and text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return cell
    return cell


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """The csv module refuses cells of more than 131072 characters; a text may be longer."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
