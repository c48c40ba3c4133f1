"""Counting synthetic scores: what is counted, and that parts add up exactly."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.calibration.grid import BINS, bins_of, buckets_of
from hf_sparsify.calibration.histogram import MASS_UNIT, ScoreHistogram
from hf_sparsify.errors import DataError, NotPatchableError
from hf_sparsify.patcher.methods import FullMask, RowRanges
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS, reference
from score_chunks import HEADS, chunk, observed, random, same

BUDGET = Budget(k=5)


def everything(histogram: ScoreHistogram) -> int:
    return int(sum(counts.sum() for counts in histogram.counts.values()))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_key_of_every_row_is_counted_in_its_bin(placement: str) -> None:
    sample = chunk(random(1, queries=30))
    histogram = observed(BUDGET, [sample], placement)
    values = sample.scores - reference(sample, placement)
    for head in range(HEADS):
        for bucket, counts in histogram.counts.items():
            rows = [row for row in range(1, 30) if int(buckets_of(torch.tensor(row + 1))) == bucket]
            seen = torch.cat([values[0, head, row, : row + 1] for row in rows])
            assert torch.equal(counts[head], torch.bincount(bins_of(seen).long(), minlength=BINS))
    assert histogram.rows.tolist() == [0, 0] + [1] * 29, "a row that sees one key has nothing to choose"


def test_mass_and_limits_are_those_of_each_row() -> None:
    sample = chunk(random(2, queries=40))
    histogram = observed(BUDGET, [sample], limits=True, mass=True)
    assert histogram.mass is not None
    assert histogram.limits is not None
    expected = (sample.scores - sample.row_max).exp()[:, :, 1:].double().sum((0, 2, 3))
    found = sum(mass.sum(-1) for mass in histogram.mass.values())
    assert isinstance(found, torch.Tensor)
    assert found * MASS_UNIT == pytest.approx(expected, abs=40 * 40 * MASS_UNIT)
    sixth = sample.scores[0, :, 5:].topk(6, dim=-1).values[..., -1]
    counted = sum(histogram.limits.values())
    assert isinstance(counted, torch.Tensor)
    for head in range(HEADS):
        assert torch.equal(counted[head], torch.bincount(bins_of(sixth[head]).long(), minlength=BINS))


def test_protected_keys_count_as_highest() -> None:
    histogram = observed(Budget(k=8, protect_first=2, protect_recent=1), [chunk(random(3, queries=20))])
    top = sum(counts[:, -1] for counts in histogram.counts.values())
    assert isinstance(top, torch.Tensor)
    assert top.tolist() == [2 + 3 * 18] * HEADS


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_order_and_batching_of_samples_do_not_matter(placement: str) -> None:
    samples = [random(seed, queries=40) for seed in range(6)]
    forward = observed(BUDGET, [chunk(sample) for sample in samples], placement)
    assert same(forward, observed(BUDGET, [chunk(sample) for sample in reversed(samples)], placement))
    halves = [chunk(torch.cat(samples[:2])), chunk(torch.cat(samples[2:]))]
    assert same(forward, observed(BUDGET, halves, placement))
    assert not same(forward, observed(BUDGET, [chunk(2 * sample) for sample in samples], placement))


def test_padding_queries_are_not_counted() -> None:
    scores = random(1, queries=30, batch=2)
    causal = RowRanges.causal(30, 30)
    first, last = causal.first.repeat(2, 1), causal.last.repeat(2, 1)
    counted = torch.ones(2, 30, dtype=torch.bool)
    # Right padding: the last ten rows of the second sequence are padding, and their scores are absurd.
    counted[1, 20:] = False
    scores[1, :, 20:] = torch.nan
    scores[1, :, :, 20:] = 4000
    last[1] = last[1].clamp(max=20)
    padded = observed(BUDGET, [chunk(scores, RowRanges(first, last, counted))], limits=True, mass=True)
    alone = [chunk(scores[:1]), chunk(scores[1:, :, :20, :20])]
    assert same(padded, observed(BUDGET, alone, limits=True, mass=True))
    nothing = RowRanges(first, last, torch.zeros(2, 30, dtype=torch.bool))
    assert everything(observed(BUDGET, [chunk(scores, nothing)])) == 0


def test_rows_that_see_nothing_are_not_counted() -> None:
    visible = torch.zeros(1, 1, 4, 9, dtype=torch.bool)
    visible[..., 0, :8] = True
    histogram = observed(BUDGET, [chunk(random(0, queries=9)[:, :, :4], FullMask(visible))])
    assert histogram.rows.tolist() == [0] * 8 + [1]
    assert everything(histogram) == 8 * HEADS


def test_rows_that_are_always_dense_are_not_counted() -> None:
    histogram = observed(Budget(k=5, min_length=9), [chunk(random(0, queries=11))])
    assert histogram.rows.tolist() == [0] * 9 + [1] * 3
    assert everything(histogram) == (9 + 10 + 11) * HEADS


def test_memory_does_not_grow_with_samples() -> None:
    histogram = observed(BUDGET, [chunk(random(seed)) for seed in range(2)])
    buckets = sorted(histogram.counts)
    histogram(chunk(random(9)))
    assert sorted(histogram.counts) == buckets
    assert len(histogram.rows) == 97


def test_half_precision_scores_are_counted_alike() -> None:
    scores = random(2, queries=40).to(torch.bfloat16)
    assert same(observed(BUDGET, [chunk(scores)]), observed(BUDGET, [chunk(scores.float())]))


@pytest.mark.parametrize("split", [0, 1, 4, 9])
def test_parts_that_are_merged_are_the_whole(split: int) -> None:
    budget = Budget(k=16, protect_first=2)
    # Of all lengths, so that the parts do not fill the same buckets.
    chunks = [chunk(random(seed, queries=8 + 20 * seed)) for seed in range(9)]
    whole, first, second = (
        observed(budget, part, "max-relative", limits=True, mass=True)
        for part in (chunks, chunks[:split], chunks[split:])
    )
    first.merge(second)
    assert same(first, whole)


def test_only_what_counts_the_same_is_merged() -> None:
    for other in (
        ScoreHistogram(Budget(k=6)),
        ScoreHistogram(BUDGET, "pre-softmax"),
        ScoreHistogram(BUDGET, scale=2.0),
        ScoreHistogram(BUDGET, mass=True),
    ):
        with pytest.raises(DataError, match="cannot be added"):
            ScoreHistogram(BUDGET, scale=1.0).merge(other)


def test_heads_that_see_different_keys_are_refused() -> None:
    visible = torch.ones(1, HEADS, 30, 30, dtype=torch.bool).tril()
    visible[:, 1] &= torch.ones(30, 30, dtype=torch.bool).triu(-5)
    with pytest.raises(NotPatchableError, match="heads see different keys"):
        ScoreHistogram(BUDGET)(chunk(random(0, queries=30), FullMask(visible)))
