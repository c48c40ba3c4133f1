"""Thresholds from histograms: on paper, on one sample exactly, on held-out rows, and as the paper's formula."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hf_sparsify.calibration.estimators import count_matched, fit, mass_below, mean_of_limits
from hf_sparsify.calibration.grid import BINS, edges
from hf_sparsify.calibration.histogram import MASS_UNIT, ScoreHistogram
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS, reference
from hf_sparsify.patcher.thresholds import ModuleThresholds
from score_chunks import HEADS, chunk, observed, random
from torch import Tensor

ZERO = BINS // 2


def fitted(histogram: ScoreHistogram, method: Budget, *how: object) -> ModuleThresholds:
    table = fit(histogram, method, *how)  # type: ignore[arg-type]
    assert table is not None
    return table


def test_counting_on_paper() -> None:
    counts = torch.zeros(1, BINS, dtype=torch.int64)
    counts[0, ZERO + 4], counts[0, ZERO + 10], counts[0, ZERO + 20] = 6, 4, 2
    width = 0.0625

    def steps(budget: float) -> float:
        return float(count_matched(counts, torch.tensor([budget]))) / width

    assert steps(2) == 20, "on an edge: just the bin above it"
    assert steps(6) == 10
    assert steps(12) == 4
    assert steps(1) == 20.5, "nothing above the bin: linear"
    # From 2 above the bin to 6 with it, exponentially: 3 = 2 x 3 ** share.
    assert steps(3) == pytest.approx(11 - math.log(3 / 2) / math.log(3))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_scores_more_than_a_bin_apart_are_counted_exactly(k: int, placement: str) -> None:
    generator = torch.Generator().manual_seed(k)
    # One row a head: 50 scores, 0.4 apart, shuffled.
    order = torch.stack([torch.randperm(50, generator=generator) for _ in range(HEADS)])
    sample = chunk((order * 0.4 - 10).view(1, HEADS, 1, 50), RowRanges.all_keys(1, 50))
    table = fitted(observed(Budget(k=k), [sample], placement), Budget(k=k))
    assert (table.lengths.tolist(), table.shortest, table.longest) == ([50], 50, 50)
    limit = table.theta.view(1, HEADS, 1, 1) + reference(sample, placement)
    assert ((sample.scores > limit).sum(-1) == k).all()


@pytest.mark.parametrize(
    "method", [TopK(k=8), TopK(k=2), TopK(k=64), TopK(keep=0.1), TopK(k=16, protect_first=2, protect_recent=3)]
)
def test_held_out_rows_keep_their_budget_within_five_percent(method: TopK) -> None:
    table = fitted(observed(method, [chunk(random(seed)) for seed in range(40)]), method)
    kept, asked = torch.zeros(HEADS), torch.zeros(HEADS)
    for seed in range(100, 140):
        held_out = chunk(random(seed))
        rows_k = method.rows_k(held_out.lengths)
        above = held_out.scores > table.lookup(held_out.lengths).unsqueeze(-1)
        protected = method.protected(held_out)
        if protected is not None:
            above |= protected
        long = (rows_k < held_out.lengths).expand(1, HEADS, -1)
        kept += (above.sum(-1) * long).sum((0, 2))
        asked += (rows_k * long).sum((0, 2))
    assert kept / asked == pytest.approx(torch.ones(HEADS), abs=0.05)


def test_any_budget_is_read_from_the_same_counts() -> None:
    chunks = [chunk(random(seed)) for seed in range(6)]
    once = observed(Budget(k=8), chunks)
    for other in (Budget(k=3), Budget(k=30), Budget(keep=0.2)):
        read, anew = fitted(once, other), fitted(observed(other, chunks), other)
        assert torch.equal(read.theta, anew.theta)
        assert torch.equal(read.lengths, anew.lengths)
        assert (read.shortest, read.longest) == (anew.shortest, anew.longest)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_theta_does_not_rise_with_k(placement: str) -> None:
    histogram = observed(Budget(k=8), [chunk(random(seed)) for seed in range(4)], placement)
    tables = [fitted(histogram, Budget(k=k)) for k in range(1, 60, 3)]
    lengths = torch.arange(64, 97).view(1, 1, -1)
    for fewer, more in pairwise(tables):
        assert bool((fewer.lookup(lengths) >= more.lookup(lengths)).all())


def direct_limits(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k + 1, dim=-1).values[..., -1]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1])
def test_the_mean_estimator_is_the_papers_formula_to_a_bin(placement: str, alpha: float) -> None:
    samples = [chunk(random(seed, queries=50)[:, :, :20] / 4, RowRanges.all_keys(20, 50)) for seed in range(5)]
    method = TopTheta(k=6, placement=placement)
    table = fitted(observed(Budget(k=6), samples, placement, limits=True), method, "mean", alpha)
    limits = torch.cat([direct_limits(s.scores - reference(s, placement), 6)[0] for s in samples], -1).double()
    values = limits.exp() if placement == "post-softmax" else limits
    expected = values.mean(-1) + alpha * values.std(-1, correction=0)
    if placement == "post-softmax":
        expected = expected.log()
    grid = edges()
    at = torch.searchsorted(grid, expected) - 1
    assert bool(((table.theta[:, 0] - expected).abs() <= grid[at + 1] - grid[at]).all())


def test_alpha_raises_theta() -> None:
    limits = torch.randint(0, 5, (4, BINS), generator=torch.Generator().manual_seed(0))
    for placement in PLACEMENTS:
        thetas = [mean_of_limits(limits, placement, alpha) for alpha in (-1.0, 0.0, 0.1, 1.0)]
        assert all(bool((low < high).all()) for low, high in pairwise(thetas))
    assert bool(torch.isfinite(mean_of_limits(limits, "post-softmax", -1e9)).all())


def test_mass_at_or_below_theta_on_paper() -> None:
    mass = torch.zeros(BINS, dtype=torch.int64)
    mass[ZERO], mass[ZERO + 1] = int(2 / MASS_UNIT), int(4 / MASS_UNIT)
    for theta, expected in ((0.0, 0), (0.0625, 2), (0.03125, 1), (0.125, 6), (900.0, 6), (-3.0, 0)):
        assert float(mass_below(mass, torch.tensor(theta, dtype=torch.float64))) == expected


@pytest.mark.parametrize("placement", ["max-relative", "pre-softmax"])
def test_dropped_mass_of_the_rows_that_were_counted(placement: str) -> None:
    samples = [chunk(random(seed, queries=80)[:, :, :60] / 6, RowRanges.all_keys(60, 80)) for seed in range(6)]
    table = fitted(observed(Budget(k=9), samples, placement, mass=True), TopTheta(k=9))
    assert table.dropped is not None
    expected = torch.zeros(HEADS)
    for sample in samples:
        below = sample.scores <= table.theta.view(1, HEADS, 1, 1) + reference(sample, placement)
        expected += ((sample.scores - sample.row_max).exp() * below).sum(-1).mean((0, 2)) / len(samples)
    assert table.dropped[:, 0] == pytest.approx(expected, rel=0.02)
    assert fitted(observed(Budget(k=9), samples, placement), TopTheta(k=9)).dropped is None


def test_nothing_to_fit() -> None:
    histogram = observed(Budget(k=2), [chunk(random(0, queries=12))])
    assert fit(histogram, TopK(k=12)) is None
    assert fit(histogram, TopK(keep=1.0)) is None
    assert fit(ScoreHistogram(Budget(k=2)), TopK(k=2)) is None
    table = fitted(histogram, TopK(k=10))
    assert (table.shortest, table.longest) == (11, 12)


def test_what_is_refused() -> None:
    plain = observed(Budget(k=4), [chunk(random(0, queries=20))])
    with pytest.raises(UsageError, match="protected the first 0 and the last 0 keys, and the plan protects 1 and 0"):
        fit(plain, TopK(k=4, protect_first=1))
    with pytest.raises(UsageError, match="use count-matched"):
        fit(plain, TopK(k=4), "mean")
    counted = observed(Budget(k=4), [chunk(random(0, queries=20))], limits=True)
    with pytest.raises(UsageError, match=r"only at the budget that was calibrated \(k = 4\)"):
        fit(counted, TopK(k=5), "mean")
    assert fit(counted, TopK(k=5)) is not None


def test_extreme_scores_stay_finite() -> None:
    scores = torch.full((1, 1, 4, 8), 1e6)
    scores[..., :4] = -1e6
    table = fitted(observed(Budget(k=4), [chunk(scores, RowRanges.all_keys(4, 8))]), TopK(k=4))
    assert bool(torch.isfinite(table.theta).all())
    assert ((scores > table.theta[0, 0]).sum(-1) == 4).all()
