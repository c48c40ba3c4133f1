"""JSON that may come from a stranger: without what programs read differently or a terminal would act on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from .errors import DataError

# Control characters move a terminal's cursor or colour what follows; half a surrogate pair cannot be written anywhere.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
SHOWN = 200  # characters of a value that a message shows


def parse_json(data: bytes | str) -> Any:
    """The value of UTF-8 JSON, a byte order mark aside.

    DataError, without the name of the file, for anything else, for NaN and Infinity, numbers that float cannot hold, a
    key given twice in an object, and nesting that is too deep.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(shortened(str(error))) from None


def check_texts(value: Any) -> None:
    """DataError if a string of a JSON value, a key too, holds control characters or half a surrogate pair."""
    for text in _texts(value):
        if UNPRINTABLE.search(text):
            raise DataError(f"{shortened(ascii(text))} holds control characters or half a surrogate pair")


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, not too long."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """A text for a message, cut if it is too long."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DataError(f"{shown(name)} is given twice in one object")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise DataError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DataError(f"{shortened(text)} is too large a number")
    return value
