"""A small part of a matrix in which every two values of different columns that go together still meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence


def pairs_of(row: Sequence[str]) -> set[tuple[tuple[int, str], ...]]:
    """Every two columns of a row with their values."""
    return set(itertools.combinations(enumerate(row), 2))


def pairwise(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that cover every pair of values which some row has. Greedy: first those in which most is new.

    The same rows give the same part, in their order.
    """
    shuffled = list(dict.fromkeys(rows))
    random.Random(0).shuffle(shuffled)  # otherwise every family would get the same few combinations
    covered: set[tuple[tuple[int, str], ...]] = set()
    chosen: set[tuple[str, ...]] = set()
    most = max((len(pairs_of(row)) for row in rows), default=0)
    for wanted in range(most, 0, -1):
        for row in shuffled:
            new = pairs_of(row) - covered
            if len(new) >= wanted:
                chosen.add(row)
                covered |= new
    return [row for row in dict.fromkeys(rows) if row in chosen]
