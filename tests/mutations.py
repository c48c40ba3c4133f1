"""Damaged copies of files: flipped, cut and spliced bytes, and JSON with other values in it. Seeded, so repeatable."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP = "DEEP"  # stands for nesting beyond any parser, which json.dumps could not write
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**31 + 1, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30, 10**4000),
    *("", "x", "\x00", "\x1b[31m", "\ud800", "é", "a" * 5000, "../../etc/passwd", "/etc/passwd", "./here", "~/x"),
    *([], {}, [None], ["a", 1], [[]], {"": {}}, {"method": "top-k", "k": 1}, [0] * 300, DEEP),
]


def mutated(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to three damages to bytes. others: files to splice from."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(data) + 1)
        length = chance.choice([1, 1, 2, 8, 64, len(data) // 3])
        way = chance.randrange(7)
        if way == 0:
            data = data[:start]
        elif way == 1:
            data = data[:start] + data[start + length :]
        elif way == 2:
            data = data[:start] + data[start : start + length] * 2 + data[start + length :]
        elif way == 3:
            other = chance.choice(others)
            place = chance.randrange(len(other) + 1)
            data = data[:start] + other[place : place + length] + data[start:]
        elif way == 4:
            data = data[:start] + chance.randbytes(length) + data[start + length :]
        elif way == 5:
            data = chance.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b" "]) + data
        else:
            flipped = bytearray(data)
            for _ in range(length):
                if flipped:
                    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            data = bytes(flipped)
    return data


def mutated_json(chance: random.Random, value: Any) -> str:
    """JSON text of a value in which one to three places are replaced, removed, renamed, added or given twice."""
    value = copy.deepcopy(value)
    twice = False
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(_places(value))
        way = chance.randrange(8)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[chance.choice(["", "new", "\x07", "method", "k", "keep"])] = copy.deepcopy(holder[key])
        elif way == 2 and isinstance(holder, dict):
            twice = True
        elif way == 3:
            other, place = chance.choice(_places(value))
            holder[key] = copy.deepcopy(other[place])
        else:
            holder[key] = copy.deepcopy(chance.choice(HOSTILE))
        if not _places(value):
            break
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000)
    if twice and "," in text:
        first = text.index("{") + 1
        text = text[:first] + text[first : text.index(",")] + "," + text[first:]
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a value where another value may stand, as its holder and its key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = range(len(holder)) if isinstance(holder, list) else holder
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], list | dict)]
    return found
