"""Fields of a record, checked: every message names the place and what stands there."""

from __future__ import annotations

from typing import Any

from ..errors import DataError


def field(holder: Any, name: str, where: str) -> Any:
    """A field of an object. DataError if it is none or lacks the field."""
    if not isinstance(holder, dict):
        raise DataError(f"{where}: expected an object, not {kind_of(holder)}")
    if name not in holder:
        raise DataError(f"{where}: field '{name}' is missing")
    return holder[name]


def items_of(holder: Any, name: str, where: str) -> list[Any]:
    """A list in a field."""
    items = field(holder, name, where)
    if not isinstance(items, list):
        raise DataError(f"{where}: field '{name}' must be a list, not {kind_of(items)}")
    return items


def text_of(record: Any, name: str, where: str, *, blank: bool = True) -> str:
    """A string in a field."""
    text = field(record, name, where)
    if not isinstance(text, str):
        raise DataError(f"{where}: field '{name}' must be a string, not {kind_of(text)}")
    if not blank and not text.strip():
        raise DataError(f"{where}: field '{name}' is blank")
    return encodable(text, f"{where}: field '{name}'")


def optional_text(record: dict[str, Any], name: str, where: str) -> str:
    """A string in a field that may be missing or null."""
    return "" if record.get(name) is None else text_of(record, name, where)


def index_of(record: Any, name: str, where: str, count: int) -> int:
    """A whole number from 0 to count - 1 in a field."""
    value = field(record, name, where)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: field '{name}' must be a whole number, not {kind_of(value)}")
    if not 0 <= value < count:
        raise DataError(f"{where}: field '{name}' is {value}; it must be from 0 to {count - 1}")
    return value


def id_of(record: Any, names: tuple[str, ...], default: str, where: str) -> str:
    """The first of some fields that is there, a string or a whole number, as text; else the default."""
    for name in names:
        value = record.get(name) if isinstance(record, dict) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return text_of(record, name, where, blank=False)
    return default


def encodable(text: str, where: str) -> str:
    """The text itself. DataError for half a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a Unicode surrogate pair") from error
    return text


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
