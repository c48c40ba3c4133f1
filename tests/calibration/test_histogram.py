"""Calibration on synthetic scores: the thresholds keep as many keys as the budget says."""

from __future__ import annotations

import math

import pytest
import torch
from hf_sparsify.calibration.histogram import BINS, BUCKET_GROWTH, SCORE_LIMIT, ScoreHistogram, count_matched
from hf_sparsify.patcher.methods import Chunk, FullMask, RowRanges, TopK, Visibility
from hf_sparsify.patcher.methods.budget import Budget
from torch import Tensor

HEADS = 3
STEP = 2 * math.asinh(SCORE_LIMIT) / BINS


def chunk(scores: Tensor, visibility: Visibility | None = None) -> Chunk:
    """A chunk of all queries [B, H, q, n]; causal unless a visibility is given."""
    queries, keys = scores.shape[2:]
    visibility = RowRanges.causal(queries, keys) if visibility is None else visibility
    hidden = visibility.hidden(0, queries, 0, keys)
    scores = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
    return Chunk(scores, visibility.lengths(), visibility, 0, queries, 0, keys)


def random(seed: int, queries: int = 96, batch: int = 1) -> Tensor:
    """Scores whose spread and mean differ by head."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch, HEADS, queries, queries, generator=generator)
    return normal * torch.tensor([0.5, 2.0, 30.0]).view(1, -1, 1, 1) + torch.tensor([-1.0, 0.0, 50.0]).view(1, -1, 1, 1)


def observed(budget: Budget, chunks: list[Chunk]) -> ScoreHistogram:
    histogram = ScoreHistogram(budget)
    for one in chunks:
        histogram(one)
    return histogram


@pytest.mark.parametrize(
    "budget", [TopK(k=8), TopK(k=2), TopK(k=64), TopK(keep=0.1), TopK(k=16, protect_first=2, protect_recent=3)]
)
def test_held_out_rows_keep_their_budget_within_five_percent(budget: TopK) -> None:
    table = observed(budget, [chunk(random(seed)) for seed in range(40)]).fit()
    assert table is not None
    kept, asked = torch.zeros(HEADS), torch.zeros(HEADS)
    for seed in range(100, 140):
        held_out = chunk(random(seed))
        rows_k = budget.rows_k(held_out.lengths)
        theta = table.lookup(held_out.lengths)
        above = held_out.scores > theta.unsqueeze(-1)
        protected = budget.protected(held_out)
        if protected is not None:
            above |= protected
        long = (rows_k < held_out.lengths).expand(1, HEADS, -1)
        kept += (above.sum(-1) * long).sum((0, 2))
        asked += (rows_k * long).sum((0, 2))
    assert kept / asked == pytest.approx(torch.ones(HEADS), abs=0.05)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_one_sample_is_counted_exactly_to_a_bin(k: int) -> None:
    visible = RowRanges.all_keys(20, 50)
    sample = chunk(random(3, queries=50)[:, :, :20], visible)
    table = observed(TopK(k=k), [sample]).fit()
    assert table is not None
    assert table.lengths.tolist() == [50]
    assert (table.shortest, table.longest) == (50, 50)
    for head in range(HEADS):
        scores = sample.scores[0, head].flatten()
        theta = table.theta[head, 0]
        position = torch.asinh(theta.double())
        for bound, compare in ((position - STEP, torch.ge), (position + STEP, torch.le)):
            assert compare((scores > torch.sinh(bound)).sum(), torch.tensor(20 * k))


def test_counting_on_paper() -> None:
    counts = torch.zeros(1, BINS, dtype=torch.int64)
    zero = BINS // 2
    counts[0, zero], counts[0, zero + 10], counts[0, zero + 20] = 6, 4, 2

    def bin_of(budget: int) -> float:
        theta = count_matched(counts, torch.tensor([budget]))
        return (math.asinh(float(theta)) + math.asinh(SCORE_LIMIT)) / STEP - zero

    assert bin_of(2) == pytest.approx(20, abs=1e-2)
    assert bin_of(1) == pytest.approx(20.5, abs=1e-2)
    assert bin_of(3) == pytest.approx(10.75, abs=1e-2)
    assert bin_of(6) == pytest.approx(10, abs=1e-2)
    assert bin_of(12) == pytest.approx(0, abs=1e-2)


def same(left: ScoreHistogram, right: ScoreHistogram) -> bool:
    one, other = left.fit(), right.fit()
    assert one is not None
    assert other is not None
    assert torch.equal(one.lengths, other.lengths)
    assert (one.shortest, one.longest) == (other.shortest, other.longest)
    return torch.equal(one.theta, other.theta)


def test_order_and_batching_of_samples_do_not_matter() -> None:
    samples = [random(seed, queries=40) for seed in range(6)]
    forward = observed(TopK(k=5), [chunk(sample) for sample in samples])
    assert same(forward, observed(TopK(k=5), [chunk(sample) for sample in reversed(samples)]))
    assert same(forward, observed(TopK(k=5), [chunk(torch.cat(samples[:2])), chunk(torch.cat(samples[2:]))]))
    assert not same(forward, observed(TopK(k=5), [chunk(sample + 1) for sample in samples]))


def test_padding_queries_are_not_recorded() -> None:
    scores = random(1, queries=30, batch=2)
    causal = RowRanges.causal(30, 30)
    first, last = causal.first.repeat(2, 1), causal.last.repeat(2, 1)
    counted = torch.ones(2, 30, dtype=torch.bool)
    # Right padding: the last ten rows of the second sequence are padding, and their scores are absurd.
    counted[1, 20:] = False
    scores[1, :, 20:] = 4000
    scores[1, :, :, 20:] = 4000
    last[1] = last[1].clamp(max=20)
    padded = observed(TopK(k=4), [chunk(scores, RowRanges(first, last, counted))])
    alone = observed(TopK(k=4), [chunk(scores[:1]), chunk(scores[1:, :, :20, :20])])
    assert same(padded, alone)
    nothing = RowRanges(first, last, torch.zeros(2, 30, dtype=torch.bool))
    assert observed(TopK(k=4), [chunk(scores, nothing)]).fit() is None


def test_rows_within_their_budget_are_not_recorded() -> None:
    histogram = observed(TopK(k=10), [chunk(random(0, queries=12))])
    assert (histogram.shortest, histogram.longest) == (11, 12)
    assert sum(bucket.rows for bucket in histogram.buckets.values()) == 2
    assert observed(TopK(k=12), [chunk(random(0, queries=12))]).fit() is None
    assert observed(TopK(keep=1.0), [chunk(random(0, queries=12))]).fit() is None
    assert ScoreHistogram(TopK(k=2)).fit() is None


def test_rows_that_see_nothing_are_not_recorded() -> None:
    visible = torch.zeros(1, 1, 4, 9, dtype=torch.bool)
    visible[..., 0, :8] = True
    histogram = observed(TopK(k=2), [chunk(random(0, queries=9)[:, :, :4], FullMask(visible))])
    assert (histogram.shortest, histogram.longest) == (8, 8)
    assert sum(bucket.rows for bucket in histogram.buckets.values()) == 1


def test_memory_does_not_grow_with_samples_but_with_the_range_of_lengths() -> None:
    histogram = observed(TopK(k=4), [chunk(random(seed, queries=96)) for seed in range(2)])
    buckets = len(histogram.buckets)
    assert buckets <= math.log(96 / 4) / math.log(BUCKET_GROWTH) + 2
    histogram(chunk(random(9, queries=96)))
    assert len(histogram.buckets) == buckets


def test_extreme_scores_stay_finite() -> None:
    scores = torch.full((1, 1, 4, 8), 1e6)
    scores[..., :4] = -1e6
    table = observed(TopK(k=4), [chunk(scores, RowRanges.all_keys(4, 8))]).fit()
    assert table is not None
    assert bool(torch.isfinite(table.theta).all())
    assert ((scores > table.theta[0, 0]).sum(-1) == 4).all()


def test_half_precision_scores_are_counted_alike() -> None:
    scores = random(2, queries=40).to(torch.bfloat16)
    assert same(observed(TopK(k=5), [chunk(scores)]), observed(TopK(k=5), [chunk(scores.float())]))


@pytest.mark.parametrize("split", [0, 1, 4, 9])
def test_parts_that_are_merged_are_the_whole(split: int) -> None:
    budget = TopK(k=16, protect_first=2)
    # Of all lengths, so that the parts do not fill the same buckets.
    chunks = [chunk(random(seed, queries=8 + 20 * seed)) for seed in range(9)]
    whole, first, second = (observed(budget, part) for part in (chunks, chunks[:split], chunks[split:]))
    first.merge(second)
    assert (first.shortest, first.longest) == (whole.shortest, whole.longest) == (17, 168)
    made, expected = first.fit(), whole.fit()
    assert made is not None
    assert expected is not None
    assert torch.equal(made.theta, expected.theta)
    assert torch.equal(made.lengths, expected.lengths)
    assert (made.shortest, made.longest) == (expected.shortest, expected.longest)
