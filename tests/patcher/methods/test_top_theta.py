"""Top-theta attention on raw scores: thresholds, their limits, and what happens without one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import (
    TopK,
    TopTheta,
    attend_rows,
    exact_top_k,
    method_from_dict,
    method_to_dict,
)
from hf_sparsify.patcher.thresholds import ModuleThresholds
from tiny_models import LAYOUTS, Choose, attention_inputs, brute_force, highest
from torch import Tensor


def raw(k: int, **fields: Any) -> TopTheta:
    """Top-theta that compares the scores themselves with its thresholds."""
    return TopTheta(k=k, placement="pre-softmax", **fields)


class PerHead:
    """One threshold per head, whatever the row length; None for the lengths in `without`."""

    def __init__(self, *theta: float, without: tuple[int, ...] = ()) -> None:
        self.theta = torch.tensor(theta)
        self.without = without

    def lookup(self, lengths: Tensor) -> Tensor:
        theta = self.theta.view(1, -1, 1).expand(lengths.shape[0], -1, lengths.shape[-1]).clone()
        for length in self.without:
            theta.masked_fill_(lengths == length, torch.nan)
        return theta

    def lookup_dropped(self, lengths: Tensor) -> Tensor:
        raise AssertionError("not asked for")


def everywhere(theta: float, heads: int = 4) -> PerHead:
    return PerHead(*[theta] * heads)


def above(theta: float, k: int, min_keep: int = 1) -> Choose:
    """Scores above theta, at least the min_keep highest; everything in a row of up to k."""

    def choose(row: list[tuple[int, float]]) -> set[int]:
        if len(row) <= k:
            return {j for j, _ in row}
        kept = {j for j, score in row if score > theta}
        return kept if len(kept) >= min_keep else highest(min_keep)(row)

    return choose


EXTRAS: list[dict[str, Any]] = [{}, {"bias": True, "softcap": 2.0, "sinks": True}, {"queries": 1, "keys": 9}]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_brute_force(layout: str, extra: dict[str, Any]) -> None:
    call = attention_inputs(layout, **extra)
    expected, kept = brute_force(call, above(0.25, k=2))
    out, counts = raw(k=2).attend(call, thresholds=everywhere(0.25), count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))
    assert not counts.fallback.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_minus_infinity_is_dense(layout: str) -> None:
    call = attention_inputs(layout)
    out, counts = raw(k=1).attend(call, thresholds=everywhere(-math.inf), count=True)
    assert torch.equal(out, attend_rows(call)[0])
    assert counts is not None
    assert torch.equal(counts.kept, call.visibility.lengths().expand(2, 4, 7))
    assert not counts.rescued.any()


@pytest.mark.parametrize("min_keep", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plus_infinity_keeps_exactly_min_keep(layout: str, min_keep: int) -> None:
    call = attention_inputs(layout)
    method = raw(k=2, min_keep=min_keep)
    expected, kept = brute_force(call, above(math.inf, k=2, min_keep=min_keep))
    out, counts = method.attend(call, thresholds=everywhere(math.inf), count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))
    assert torch.equal(counts.rescued, call.visibility.lengths().expand(2, 4, 7) > 2)


def test_a_score_equal_to_the_threshold_is_dropped() -> None:
    call = attention_inputs("all", batch=1, heads=1, groups=1, queries=1, keys=4, width=1)
    call = replace(
        call,
        query=torch.ones(1, 1, 1, 1).double(),
        key=torch.tensor([1.0, 2.0, 3.0, 2.0]).double().view(1, 1, 4, 1),
        scale=1.0,
    )
    for theta, kept in ((2.0, 1), (math.nextafter(2.0, 1.0), 1), (1.999, 3), (1.0, 3), (0.5, 4)):
        _, counts = raw(k=1).attend(call, thresholds=everywhere(theta, heads=1), count=True)
        assert counts is not None
        # Tables hold float32, where the double just below 2 is 2.
        assert counts.kept.item() == kept
        assert not counts.rescued.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protect", [{}, {"protect_first": 1, "protect_recent": 1}], ids=str)
def test_without_a_table_it_is_top_k(layout: str, protect: dict[str, Any]) -> None:
    call = attention_inputs(layout)
    out, counts = raw(k=2, **protect).attend(call, count=True)
    expected, exact = TopK(k=2, **protect).attend(call, count=True)
    assert torch.equal(out, expected)
    assert counts is not None
    assert exact is not None
    assert torch.equal(counts.kept, exact.kept)
    assert torch.equal(counts.fallback, call.visibility.lengths().expand(2, 4, 7) > 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_lengths_without_a_threshold_use_their_own_top_k_and_are_reported(layout: str) -> None:
    call = attention_inputs(layout)
    lengths = call.visibility.lengths().expand(2, 4, 7)
    missing = int(lengths.max())
    out, counts = raw(k=2).attend(call, thresholds=PerHead(0.25, 0.25, 0.25, 0.25, without=(missing,)), count=True)
    choose = above(0.25, k=2)
    expected, kept = brute_force(call, lambda row: highest(2)(row) if len(row) == missing else choose(row))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))
    assert torch.equal(counts.fallback, (lengths == missing) & (lengths > 2))
    assert not (counts.rescued & counts.fallback).any()


def test_every_head_has_its_own_threshold() -> None:
    call = attention_inputs("all")
    thetas = (-0.5, 0.0, 0.5, 1.0)
    out, _ = raw(k=1).attend(call, thresholds=PerHead(*thetas))
    for head, theta in enumerate(thetas):
        expected, _ = brute_force(call, above(theta, k=1))
        torch.testing.assert_close(out[:, head], expected[:, head], rtol=1e-12, atol=1e-12)


def test_a_row_no_longer_than_its_k_is_dense() -> None:
    call = attention_inputs("causal")
    out, counts = raw(k=4).attend(call, thresholds=everywhere(math.inf), count=True)
    assert counts is not None
    assert counts.kept[0, 0].tolist() == [1, 2, 3, 4, 1, 1, 1]
    torch.testing.assert_close(out[:, :, :4], attend_rows(call)[0][:, :, :4], rtol=0, atol=0)


def test_protected_keys_are_kept_whatever_the_threshold() -> None:
    call = attention_inputs("left", queries=8, keys=8)

    def choose(row: list[tuple[int, float]]) -> set[int]:
        return {j for j, _ in row} if len(row) <= 3 else {row[0][0], row[-1][0]}

    method = raw(k=3, protect_first=1, protect_recent=1)
    out, counts = method.attend(call, thresholds=everywhere(math.inf), count=True)
    torch.testing.assert_close(out, brute_force(call, choose)[0], rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert not counts.rescued.any()


def test_kept_sets_shrink_as_the_threshold_rises() -> None:
    call = attention_inputs("causal", queries=9, keys=9)
    kept = []
    for theta in (-1.0, 0.0, 0.5, 1.0):
        counts = raw(k=1).attend(call, thresholds=everywhere(theta), count=True)[1]
        assert counts is not None
        kept.append(counts.kept)
    assert all(bool((more >= less).all()) for more, less in itertools.pairwise(kept))
    assert int(kept[0].sum()) > int(kept[-1].sum())


def test_a_calibrated_table_is_used() -> None:
    call = attention_inputs("causal")
    table = ModuleThresholds(torch.tensor([3.0, 6.0]), torch.full((4, 2), 0.25), 3, 6, "pre-softmax")
    out, counts = raw(k=2).attend(call, thresholds=table, count=True)
    choose = above(0.25, k=2)
    expected, _ = brute_force(call, lambda row: highest(2)(row) if len(row) > 6 else choose(row))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert counts.fallback[0, 0].tolist() == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 4, "min_keep": 0}, "min_keep must be"),
        ({"k": 4, "min_keep": 1.5}, "min_keep must be"),
        ({"k": 4, "min_keep": True}, "min_keep must be"),
        ({"k": 4, "min_keep": 5}, "more than k"),
        ({"min_keep": 2}, "exactly one of k"),
        ({"k": 4, "placement": "softmax"}, "placement must be one of post-softmax, max-relative, pre-softmax, not"),
        ({"k": 4, "denominator": "none"}, "must be one of exact, exp-threshold, offline, rounded, not 'none'"),
        ({"k": 4, "denominator": "offline", "compensation": "sdc"}, "saves nothing with post-softmax.*max-relative or"),
        ({"k": 4, "denominator": "exp-threshold", "placement": "pre-softmax"}, "goes with compensation sdc or sdc.vmc"),
        ({"k": 4, "denominator": "offline", "placement": "max-relative"}, "goes with compensation sdc or sdc.vmc"),
        ({"k": 4, "protect_first": 3, "protect_recent": 2}, "do not fit in k = 4"),
    ],
)
def test_unusable_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TopTheta(**fields)


def test_what_tables_say() -> None:
    assert TopTheta(k=64).describe() == "k = 64, post-softmax"
    assert TopTheta(keep=0.25, compensation="sdc+vmc").describe() == "keep = 0.25, sdc+vmc, post-softmax"
    bound = TopTheta(k=8, placement="max-relative", compensation="sdc", denominator="exp-threshold")
    assert bound.describe() == "k = 8, sdc, max-relative, exp-threshold denominator"
    assert TopK(k=64, compensation="sdc").describe() == "k = 64, sdc"


def test_a_recipe_entry_holds_every_field_and_comes_back() -> None:
    method = TopTheta(
        k=8,
        min_keep=2,
        placement="max-relative",
        denominator="offline",
        compensation="sdc+vmc",
        v_mean="dropped",
        min_length=99,
    )
    entry = method_to_dict(method)
    assert entry["placement"] == "max-relative"
    assert entry["denominator"] == "offline"
    assert entry["min_length"] == 99
    assert method_from_dict(entry) == method
    assert method_from_dict({"method": "top-theta", "k": 8}) == TopTheta(k=8)
    exact = exact_top_k(method)
    assert exact == TopK(k=8, compensation="sdc+vmc", v_mean="dropped", min_length=99)


def test_the_dense_and_the_small_version_keep_what_they_can() -> None:
    method = TopTheta(k=8, min_keep=5, protect_first=4, placement="max-relative", compensation="sdc")
    assert method.as_dense() == replace(method, k=None, keep=1.0)
    assert method.as_small(3) == replace(method, k=3, min_keep=3, protect_first=0)
    assert method.as_small(20) == method
