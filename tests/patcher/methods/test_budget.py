"""How many keys a row keeps, and which are protected."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import Chunk, FullMask, RowRanges, TopK, TopTheta, Visibility
from hf_sparsify.patcher.methods.budget import Budget
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import visibility, visible_keys


def chunk_of(seen: Visibility, queries: int, keys: int) -> Chunk:
    """A chunk of all rows with random scores."""
    visible = visible_keys(seen, 2, 4, queries, keys)
    scores = torch.randn(visible.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~visible, -torch.inf)
    return Chunk(scores, seen.lengths(), seen, 0, queries, 0, keys)


def test_k_is_capped_by_the_row_length() -> None:
    assert Budget(k=3).rows_k(torch.tensor([0, 1, 3, 4, 9])).tolist() == [0, 1, 3, 3, 3]


@pytest.mark.parametrize("budget", [{"k": 3}, {"keep": 0.5}])
def test_rows_shorter_than_min_length_keep_all(budget: dict[str, Any]) -> None:
    lengths = torch.tensor([0, 1, 4, 6, 7, 9])
    kept = Budget(**budget).rows_k(lengths).tolist()
    assert Budget(**budget, min_length=7).rows_k(lengths).tolist() == [0, 1, 4, 6, *kept[4:]]
    assert Budget(**budget, min_length=1).rows_k(lengths).tolist() == kept


@pytest.mark.parametrize(
    ("keep", "length", "expected"),
    [
        (0.1, 30, 3),
        (0.07, 100, 7),
        (0.55, 100, 55),
        (0.1, 31, 4),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.5, 7, 4),
        (1e-6, 5, 1),
        (1.0, 5, 5),
        (0.25, 0, 0),
    ],
)
def test_a_fraction_is_rounded_up_from_its_decimal_value(keep: float, length: int, expected: int) -> None:
    assert Budget(keep=keep).rows_k(torch.tensor([length])).tolist() == [expected]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 1000), st.integers(1, 200_000))
def test_fraction_is_the_exact_ceiling(thousandths: int, length: int) -> None:
    exact = math.ceil(Fraction(thousandths, 1000) * length)
    assert Budget(keep=thousandths / 1000).rows_k(torch.tensor(length)).item() == exact


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of k"),
        ({"k": 4, "keep": 0.5}, "exactly one of k"),
        ({"k": 0}, "k must be"),
        ({"k": -1}, "k must be"),
        ({"k": 2.0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"keep": 0.0}, "keep must be"),
        ({"keep": 1.01}, "keep must be"),
        ({"keep": math.nan}, "keep must be"),
        ({"keep": "0.5"}, "keep must be"),
        ({"k": 4, "protect_first": -1}, "protect_first must be"),
        ({"k": 4, "protect_recent": 1.5}, "protect_recent must be"),
        ({"k": 4, "protect_recent": True}, "protect_recent must be"),
        ({"k": 4, "protect_first": 3, "protect_recent": 2}, "do not fit in k = 4"),
        ({"k": 4, "min_length": -1}, "min_length must be a whole number of at least 0, not -1"),
        ({"k": 4, "min_length": 2.5}, "min_length must be"),
        ({"k": 4, "min_length": None}, "min_length must be"),
    ],
)
def test_unusable_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget(**fields)


def test_describe() -> None:
    assert Budget(k=64).describe() == "k = 64"
    assert Budget(keep=0.25).describe() == "keep = 0.25"
    assert Budget(k=64, min_length=512, compensation="sdc").describe() == "k = 64, dense below 512 keys, sdc"


def test_the_dense_and_the_small_version_treat_rows_of_all_lengths_alike() -> None:
    budget = Budget(k=8, min_length=512, protect_first=3)
    assert budget.as_dense() == Budget(keep=1.0, protect_first=3)
    assert budget.as_small(4) == Budget(k=4, protect_first=3)
    assert budget.as_small(2) == Budget(k=2)


def test_nothing_is_protected_unless_asked() -> None:
    assert Budget(k=2).protected(chunk_of(RowRanges.causal(5, 5), 5, 5)) is None


@pytest.mark.parametrize("layout", ["all", "causal", "left", "right", "window", "full"])
@pytest.mark.parametrize(
    "budget",
    [Budget(k=4, protect_first=2, protect_recent=1), Budget(k=3, protect_recent=3), Budget(keep=0.4, protect_first=2)],
    ids=["first and recent", "recent", "fraction"],
)
def test_protected_are_the_first_and_last_keys_that_a_row_sees(layout: str, budget: Budget) -> None:
    queries, keys = 6, 8
    seen = visibility(layout, 2, 4, queries, keys)
    visible = visible_keys(seen, 2, 4, queries, keys)
    protected = budget.protected(chunk_of(seen, queries, keys))
    assert protected is not None
    for b in range(2):
        for h in range(4):
            for i in range(queries):
                row = visible[b, h, i].nonzero().flatten().tolist()
                room = int(budget.rows_k(torch.tensor(len(row))))
                first = row[: min(budget.protect_first, room)]
                recent = min(budget.protect_recent, room - len(first))
                expected = set(first) | set(row[len(row) - recent :])
                assert set(protected[b, h, i].nonzero().flatten().tolist()) == expected


def test_protected_never_exceed_a_small_fraction_of_a_short_row() -> None:
    budget = Budget(keep=0.25, protect_first=2, protect_recent=2)
    full = FullMask(torch.ones(1, 1, 1, 8, dtype=torch.bool))
    protected = budget.protected(chunk_of(full, 1, 8))
    assert protected is not None
    assert protected[0, 0, 0].nonzero().flatten().tolist() == [0, 1]


def test_numbers_for_kernels() -> None:
    assert TopK(k=4).numbers == (4, 0, 1, 0, 0, 0)
    method = TopTheta(keep=0.07, min_length=9, compensation="sdc+vmc", v_mean="dropped")
    assert method.numbers == (0, 7, 100, 9, 2, 1)
    assert replace(method, keep=0.5).numbers == (0, 1, 2, 9, 2, 1)
    assert TopK(k=4, min_length=10**30).numbers[3] < 2**63
