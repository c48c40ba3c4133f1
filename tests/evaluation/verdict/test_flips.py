"""Flipped answers and the exact McNemar test."""

from __future__ import annotations

import json
from math import comb

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.verdict.flips import Flips, mcnemar
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (3, 3, 1.0), (8, 2, 2 * (1 + 10 + 45) / 1024)],
)
def test_mcnemar_by_hand(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_binomial_tail(lost: int, gained: int) -> None:
    flips = lost + gained
    tail = sum(comb(flips, i) for i in range(min(lost, gained) + 1)) / 2**flips
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(lost, gained) == pytest.approx(mcnemar(gained, lost))


def test_flips_name_the_items() -> None:
    dense, patched = [True, True, False, False, True], [True, False, True, False, False]
    flips = Flips.between(list("abcde"), dense, patched, list("vwxyz"))
    assert flips == Flips(("b", "e"), ("c",), 1.0, False)


def test_items_that_share_a_group_make_the_test_descriptive() -> None:
    assert Flips.between(["a", "b"], [True, True], [True, True], ["x", "x"]).descriptive
    assert not Flips.between(["a", "b"], [True, True], [True, True], ["x", "y"]).descriptive


def test_no_items_and_no_flips() -> None:
    assert Flips.between([], [], [], []) == Flips((), (), 1.0, False)


def test_to_dict_is_ready_for_json() -> None:
    flips = Flips.between(["a", "b"], [True, False], [False, True], ["x", "y"])
    assert json.loads(json.dumps(flips.to_dict())) == {
        "right_to_wrong": ["a"],
        "wrong_to_right": ["b"],
        "p": 1.0,
        "descriptive": False,
    }


def test_lengths_have_to_match() -> None:
    with pytest.raises(DataError, match="no match"):
        Flips.between(["a"], [True], [True, False], ["x"])
