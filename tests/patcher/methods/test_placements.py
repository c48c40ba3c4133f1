"""What top-theta compares with its thresholds: the weight, the score less the row's maximum, or the score."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import AttentionInputs, TopK, TopTheta, attend_rows
from row_oracle import COMPENSATED, THETA, Table, named, part_of, row_by_row, run, sparse_methods, table_for
from tiny_models import LAYOUTS, attention_inputs, visible_keys
from torch import Tensor

PLACEMENTS = tuple(THETA)
THETA_METHODS = [m for fields in COMPENSATED for m in sparse_methods(**fields) if isinstance(m, TopTheta)]
theta_methods = pytest.mark.parametrize("method", THETA_METHODS, ids=named)
placements = pytest.mark.parametrize("placement", PLACEMENTS)


class Flat(Table):
    """The same threshold for rows of every length."""

    def at(self, head: int, length: int) -> float:
        return self.theta[head]


def flat(theta: float, heads: int = 4) -> Flat:
    return Flat((theta,) * heads)


def levels(call: AttentionInputs, placement: str) -> Tensor:
    """What a placement compares [B, H, q, n], -inf where a row may not look; heads of one KV head only."""
    assert call.sinks is None
    scores = torch.matmul(call.query, call.key.transpose(2, 3)) * call.scale
    batch, heads, queries, keys = scores.shape
    scores = scores.masked_fill(~visible_keys(call.visibility, batch, heads, queries, keys), -torch.inf)
    if placement == "pre-softmax":
        return scores
    if placement == "max-relative":
        return scores - scores.amax(-1, keepdim=True)
    return scores.softmax(-1).log()


# Limits


@theta_methods
def test_minus_infinity_keeps_all_that_is_visible_and_no_more(method: TopTheta) -> None:
    for layout in LAYOUTS:
        call = attention_inputs(layout, sinks=True)
        found = run(call, replace(method, k=1), flat(-math.inf))
        assert torch.equal(found.kept, visible_keys(call.visibility, 2, 4, 7, 7))
        torch.testing.assert_close(found.output, attend_rows(call)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("min_keep", [1, 2])
@theta_methods
def test_plus_infinity_keeps_the_min_keep_highest_and_never_a_hidden_key(method: TopTheta, min_keep: int) -> None:
    for layout in LAYOUTS:
        call = attention_inputs(layout, sinks=True)
        method = replace(method, min_keep=min_keep)
        found, table = run(call, method, flat(math.inf)), flat(math.inf)
        expected = row_by_row(call, method, table)
        assert torch.equal(found.kept, expected.kept)
        assert not (found.kept & ~visible_keys(call.visibility, 2, 4, 7, 7)).any()
        lengths = call.visibility.lengths().expand(2, 4, 7)
        assert torch.equal(found.kept.sum(-1), torch.where(lengths > 2, min_keep, lengths))
        assert torch.isfinite(found.output).all()
        torch.testing.assert_close(found.output, expected.output, rtol=1e-12, atol=1e-12)


@theta_methods
def test_rows_no_longer_than_k_are_dense_to_the_bit(method: TopTheta) -> None:
    for layout in LAYOUTS:
        call = attention_inputs(layout, dtype=torch.float32)
        dense = attend_rows(call)[0]
        lengths = call.visibility.lengths().expand(2, 4, 7)
        for k in (1, 4, 7):
            found = run(call, replace(method, k=k), flat(math.inf))
            assert torch.equal(found.output[lengths <= k], dense[lengths <= k])
            assert torch.equal(found.kept.sum(-1)[lengths <= k], lengths[lengths <= k])
            assert found.counts is not None
            assert torch.equal(found.counts.rescued, lengths > k)


# The comparison


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("placement", "theta"), [("pre-softmax", 0.5), ("max-relative", 0.0)])
def test_equal_scores_at_the_threshold_are_all_dropped(placement: str, theta: float, dtype: torch.dtype) -> None:
    """What is compared is not greater than the threshold, so min-keep decides: the earliest key stays."""
    call = attention_inputs("left", width=1, dtype=dtype)
    call = replace(call, query=torch.ones_like(call.query), key=torch.full_like(call.key, 0.5), scale=1.0)
    found = run(call, TopTheta(k=2, placement=placement), flat(theta))
    long = call.visibility.lengths().expand(2, 4, 7) > 2
    assert bool((found.kept.sum(-1) == 1)[long].all())
    assert found.counts is not None
    assert torch.equal(found.counts.rescued, long)
    below = run(call, TopTheta(k=2, placement=placement), flat(theta - 1e-3))
    assert torch.equal(below.kept, visible_keys(call.visibility, 2, 4, 7, 7))


def test_equal_weights_are_all_kept_or_all_dropped() -> None:
    call = attention_inputs("all", width=1, dtype=torch.float32)
    call = replace(call, key=torch.full_like(call.key, 0.5))
    for theta, kept in ((math.log(1 / 7) + 1e-3, 1), (math.log(1 / 7) - 1e-3, 7)):
        assert bool((run(call, TopTheta(k=2), flat(theta)).kept.sum(-1) == kept).all())


@placements
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_level_of_the_next_key_keeps_exactly_k(placement: str, k: int) -> None:
    """A threshold between the k-th and the next level of every row, as calibrating on these rows alone would find."""
    call = attention_inputs("causal", batch=1, heads=2, groups=2, queries=8, keys=8)
    ordered = levels(call, placement).sort(-1, descending=True).values

    class Fitted(Table):
        def at(self, head: int, length: int) -> float:
            if length <= k:
                return math.nan
            return float(ordered[0, head, length - 1, k - 1 : k + 1].mean())

    found = run(call, TopTheta(k=k, placement=placement), Fitted((0.0, 0.0)))
    assert found.counts is not None
    assert found.kept.sum(-1).tolist()[0] == [[min(k, n) for n in range(1, 9)]] * 2
    assert not found.counts.fallback.any()
    assert torch.equal(found.kept, run(call, TopK(k=k)).kept)


@theta_methods
def test_a_row_that_keeps_m_keys_is_the_exact_top_m_row(method: TopTheta) -> None:
    """At an equal count a threshold cannot err less than top-k, nor more."""
    call = attention_inputs("causal", queries=9, keys=9)
    method = replace(method, denominator="exact")
    found, dense = run(call, method, table_for(method)), attend_rows(call)[0]
    counts, seen = found.kept.sum(-1), 0
    for m in range(1, 10):
        exact = run(call, TopK(k=m, compensation=method.compensation, v_mean=method.v_mean))
        rows = counts == m
        seen += int(rows.sum())
        assert torch.equal(found.kept[rows], exact.kept[rows])
        errors = [(out - dense).norm(dim=-1)[rows] for out in (found.output, exact.output)]
        torch.testing.assert_close(*errors, rtol=1e-12, atol=1e-12)
    assert seen == counts.numel()


@theta_methods
def test_kept_keys_are_nested_as_the_threshold_rises(method: TopTheta) -> None:
    call = attention_inputs("left", queries=9, keys=9, sinks=True)
    base = THETA[method.placement]
    kept = [
        run(call, replace(method, k=1), Table(tuple(theta + step for theta in base))).kept
        for step in (-2.0, -0.5, 0.0, 0.3, 0.6)
    ]
    for more, less in itertools.pairwise(kept):
        assert not (less & ~more).any()
    assert int(kept[0].sum()) > int(kept[-1].sum())


# What a constant added to a row's scores does


@placements
@pytest.mark.parametrize("offset", [-3.0, 0.7, 40.0])
def test_a_constant_on_a_row_of_scores_moves_raw_thresholds_alone(placement: str, offset: float) -> None:
    call = attention_inputs("left", queries=9, keys=9)
    method = TopTheta(k=2, placement=placement, compensation="sdc+vmc")
    rows = torch.randn(1, 4, 9, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
    shifted = replace(call, bias=(rows * offset).expand(1, 4, 9, 9))
    found, plain = run(shifted, method, table_for(method)), run(call, method, table_for(method))
    if placement == "pre-softmax":
        assert not torch.equal(found.kept, plain.kept)
        return
    assert torch.equal(found.kept, plain.kept)
    torch.testing.assert_close(found.output, plain.output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sink", [-5.0, 0.0, 4.0])
def test_a_learned_sink_lowers_weights_and_leaves_scores_alone(sink: float) -> None:
    call = attention_inputs("left", queries=9, keys=9)
    with_sink = replace(call, sinks=torch.full((4,), sink, dtype=torch.float64))
    for placement in PLACEMENTS:
        method = TopTheta(k=2, placement=placement)
        found, plain = run(with_sink, method, table_for(method)), run(call, method, table_for(method))
        if placement == "post-softmax" and sink > -5:
            assert int(found.kept.sum()) < int(plain.kept.sum())
            assert not (found.kept & ~plain.kept).any()
        elif placement != "post-softmax":
            assert torch.equal(found.kept, plain.kept)


@placements
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tiny_weights_do_not_vanish_below_their_threshold(placement: str, dtype: torch.dtype) -> None:
    """Weights of 1e-30 are no half-precision number and close to none in float32; their logarithms are compared."""
    call = attention_inputs("all", batch=1, heads=1, groups=1, queries=1, keys=4, width=1, dtype=dtype)
    key = torch.tensor([0.0, -70.0, -72.0, -80.0], dtype=dtype).view(1, 1, 4, 1)
    call = replace(call, query=torch.ones_like(call.query), key=key, scale=1.0)
    found = run(call, TopTheta(k=1, placement=placement), flat(-71.0, heads=1))
    assert found.kept.flatten().tolist() == [True, True, False, False]


# Rows without a threshold


@theta_methods
def test_rows_without_a_threshold_are_exact_top_k_rows(method: TopTheta) -> None:
    for layout in ["causal", "left", "full"]:
        call = attention_inputs(layout, queries=9, keys=9)
        without = (5, 6, 7, 8, 9)
        found = run(call, method, table_for(method, without=without))
        exact = run(call, TopK(k=2, compensation=method.compensation, v_mean=method.v_mean))
        rows = torch.isin(call.visibility.lengths(), torch.tensor(without)).expand(2, 4, 9)
        assert found.counts is not None
        assert torch.equal(found.counts.fallback, rows)
        assert not (found.counts.rescued & rows).any()
        assert torch.equal(found.kept[rows], exact.kept[rows])
        torch.testing.assert_close(found.output[rows], exact.output[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fields", [{"protect_first": 1}, {"protect_recent": 2}, {"protect_first": 1, "min_keep": 2}])
@theta_methods
def test_protected_keys_survive_any_threshold_in_a_step_as_in_a_prefill(
    method: TopTheta, fields: dict[str, Any]
) -> None:
    call = attention_inputs("causal", queries=9, keys=9)
    method, table = replace(method, **fields), flat(math.inf)
    whole = run(call, method, table)
    torch.testing.assert_close(whole.output, row_by_row(call, method, table).output, rtol=1e-12, atol=1e-12)
    step = run(part_of(call, 8, 9), method, table)
    assert torch.equal(step.kept, whole.kept[:, :, 8:])
    kept = step.kept[0, 0, 0].nonzero().flatten().tolist()
    assert set(kept) >= set(range(method.protect_first)) | set(range(9 - method.protect_recent, 9))
    assert len(kept) == max(method.min_keep, method.protect_first + method.protect_recent)
