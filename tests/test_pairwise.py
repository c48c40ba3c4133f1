"""The part of a matrix that meets every pair."""

from __future__ import annotations

import itertools

import pytest
from pairwise import pairs_of, pairwise

SQUARE = list(itertools.product("abc", "xyz", "123"))
HOLES = [row for row in SQUARE if row[:2] != ("a", "x") and row[1:] != ("y", "2")]


@pytest.mark.parametrize("rows", [SQUARE, HOLES, SQUARE[:1], [], [("a",)]], ids=len)
def test_every_pair_of_the_matrix_is_met(rows: list[tuple[str, ...]]) -> None:
    part = pairwise(rows)
    assert {pair for row in part for pair in pairs_of(row)} == {pair for row in rows for pair in pairs_of(row)}
    assert set(part) <= set(rows)
    assert part == pairwise(rows)


def test_it_is_much_smaller_than_the_matrix() -> None:
    rows = list(itertools.product(*(map(str, range(6)) for _ in range(3))))
    assert len(rows) == 216
    assert 36 <= len(pairwise(rows)) <= 60
