"""Where the numbers come from: commands, data, versions and hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .found import Found
from .parts import Section, Table, Value


def reproduce_section(found: Sequence[Found]) -> Section:
    """The commands that were typed, and tables of data sets and of the environment."""
    records = [record for one in found for record in _records(one)]
    commands = tuple(dict.fromkeys(str(record["command"]) for record in records if record.get("command")))
    tables = (
        Table("data", "Data", ("data set", "split", "items", "seed", "fingerprint"), _data(records)),
        Table("environment", "Environment", ("what", "which"), _environment(records)),
    )
    said = ("With the same versions these commands give the same answers again; times differ.",) if commands else ()
    return Section("reproduce", "To reproduce", said, tables=tables, commands=commands)


def _records(one: Found) -> list[dict[str, Any]]:
    """A search ran all that is in it with one command."""
    measured = [part.record for cell in one.cells for part in (cell.accuracy, cell.speed) if part]
    return [one.search] if one.search else measured


def _data(records: Sequence[dict[str, Any]]) -> tuple[tuple[Value, ...], ...]:
    rows = []
    for record in records:
        if isinstance(data := record.get("dataset"), dict):
            known = [str(data.get(name) or "–") for name in ("name", "split")]
            rows.append((*known, str(data.get("items")), str(record.get("seed")), str(data.get("fingerprint"))))
    return tuple(dict.fromkeys(rows))


def _environment(records: Sequence[dict[str, Any]]) -> tuple[tuple[Value, ...], ...]:
    """Everything that any record names; where they differ, each value once."""
    found: dict[str, list[str]] = {}
    for record in records:
        for name, value in (*dict(record["versions"]).items(), *dict(record["environment"]).items()):
            if str(value) not in found.setdefault(str(name), []):
                found[str(name)].append(str(value))
    return tuple((name, "; ".join(values)) for name, values in found.items())
