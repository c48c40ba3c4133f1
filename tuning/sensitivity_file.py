"""sensitivity.json: a sensitivity map on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import DataError, SparsifyError
from ..files import cannot_write, read_file, write_file
from ..strict_json import check_texts, parse_json, shown
from .sensitivity import HEAD_ERROR_IS, PREDICTED_KL, STREAM_ERROR, ModuleSensitivity, SensitivityMap

SENSITIVITY_FILE = "sensitivity.json"
SCHEMA_VERSION = 1
MOST_BYTES = 2**26
KINDS = ("self", "cross", "feed-forward")
OPTIONAL = ("error_by_head", "v_rows", "microseconds")


def save_sensitivity(found: SensitivityMap, path: Path, *, key: str, dataset: Mapping[str, Any]) -> None:
    """Writes a map in one step. key: of all that it follows from. SparsifyError if it cannot be written."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "dataset": dict(dataset),
        "items": found.items,
        "keeps": found.keeps,
        "error_is": found.error_is,
        "stream_error_is": STREAM_ERROR,
        "error_by_head_is": HEAD_ERROR_IS,
        "modules": {name: asdict(module) for name, module in found.modules.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise cannot_write("sensitivity map", path, error) from None


def load_sensitivity(path: Path) -> tuple[SensitivityMap, str]:
    """A map and its key. DataError, with the file's name, for what is missing or malformed."""
    try:
        data = parse_json(read_file(path, MOST_BYTES))
        check_texts(data)
        return _parse(data)
    except FileNotFoundError:
        raise DataError(f"there is no {path}: `sparsify tune` makes it") from None
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is malformed: {error}") from None


def stored_map(path: Path, key: str) -> SensitivityMap | None:
    """The map in a file if it is there and follows from just this; None for one that is damaged or another."""
    try:
        found, own = load_sensitivity(path)
    except SparsifyError:
        return None
    return found if own == key else None


def _parse(data: Any) -> tuple[SensitivityMap, str]:
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"it is no sensitivity map of schema version {SCHEMA_VERSION}")
    keeps = _numbers("keeps", data["keeps"])
    if keeps[:1] != [1.0] or keeps != sorted(set(keeps), reverse=True) or keeps[-1] <= 0:
        raise ValueError("keeps are not fractions that fall from 1.0")
    modules = {str(name): _module(name, entry, len(keeps)) for name, entry in data["modules"].items()}
    if not modules:
        raise ValueError("it names no module")
    if data["error_is"] not in (PREDICTED_KL, STREAM_ERROR):
        raise ValueError(f"its error is {shown(data['error_is'])}")
    return SensitivityMap(keeps, _count("items", data["items"]), data["error_is"], modules), str(data["key"])


def _module(name: str, entry: dict[str, Any], count: int) -> ModuleSensitivity:
    known = {item.name: entry[item.name] for item in fields(ModuleSensitivity)}
    if known["kind"] not in KINDS:
        raise ValueError(f"{name} is of kind {shown(known['kind'])}")
    for key in ("elements", "decode_rows", "width"):
        _count(key, known[key])
    for key in ("error", "stream_error", "kept", "v_rows", "microseconds"):
        if known[key] is None and key in OPTIONAL:
            continue
        if len(_numbers(key, known[key])) != count:
            raise ValueError(f"{key} of {name} has not one number for each keep rate")
    for row in known["error_by_head"] or []:
        if len(_numbers("error_by_head", row)) != count:
            raise ValueError(f"error_by_head of {name} has not one number for each keep rate")
    return ModuleSensitivity(**known)


def _numbers(what: str, value: Any) -> list[float]:
    if not isinstance(value, list) or any(
        isinstance(n, bool) or not isinstance(n, int | float) or n < 0 for n in value
    ):
        raise ValueError(f"{what} is {shown(value)} instead of numbers of at least 0")
    return [float(number) for number in value]


def _count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{what} is {shown(value)} instead of a whole number of at least 0")
    return value
