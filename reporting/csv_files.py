"""Tables as CSV."""

from __future__ import annotations

import csv
import io

from .parts import Table, Value

# A spreadsheet takes a text that starts so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_bytes(table: Table) -> bytes:
    """The table with its header, in UTF-8; numbers with all digits, "" where there is none."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.header)
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return text.getvalue().encode("utf-8", errors="replace")


def _cell(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
