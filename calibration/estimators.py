"""Thresholds from histograms: count-matched, or the paper's mean + alpha x standard deviation.

Berestizshevsky et al. 2025 (arXiv 2502.08363), section on calibration, has the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.thresholds import ModuleThresholds
from .grid import BINS, buckets_of, edges
from .histogram import MASS_UNIT, Counts, ScoreHistogram


@dataclass(frozen=True)
class _LongRows:
    """The rows longer than their budget, by bucket: all [T], ascending. rows: their number; budget, length: sums."""

    buckets: list[int]
    rows: Tensor
    budget: Tensor
    length: Tensor
    shortest: int
    longest: int


def fit(
    histogram: ScoreHistogram, method: Budget, estimator: str = "count-matched", alpha: float = 0.0
) -> ModuleThresholds | None:
    """The thresholds of a module at the budget of `method`, which need not be the one that was calibrated.

    None if no row was longer than that budget. UsageError for other protected keys than those of calibration, and for
    the mean estimator at another budget or where its values were not counted.
    """
    _check(histogram, method, estimator)
    long = _long_rows(histogram, method)
    if long is None:
        return None
    if estimator == "mean":
        theta = mean_of_limits(_stacked(histogram.limits or {}, long), histogram.placement, alpha)
    else:
        counts = _stacked(histogram.counts, long)
        # In the bucket that k falls into, shorter rows were counted too: the share of keys is what they have in common.
        theta = count_matched(counts, counts.sum(-1) * (long.budget / long.length).unsqueeze(-1))
    dropped = None
    if histogram.mass is not None:
        every = torch.bincount(buckets_of(torch.arange(len(histogram.rows))), histogram.rows.double())
        dropped = mass_below(_stacked(histogram.mass, long), theta) / every[long.buckets].unsqueeze(-1)
    return ModuleThresholds(
        lengths=(long.length / long.rows).float(),
        theta=theta.T.float().contiguous(),
        shortest=long.shortest,
        longest=long.longest,
        placement=histogram.placement,
        scale=histogram.scale,
        nature=histogram.nature,
        dropped=None if dropped is None else dropped.T.float().contiguous(),
    )


def count_matched(counts: Tensor, budget: Tensor) -> Tensor:
    """The value that `budget` of the counted ones exceed: counts int64 [..., BINS], budget [...] -> float64 [...].

    Within a bin the number above is taken to fall exponentially, which tails of scores nearly do.
    """
    above = torch.nn.functional.pad(counts, (0, 1)).flip(-1).cumsum(-1).flip(-1).double()
    # The highest bin that still has to be cut.
    index = (above[..., :-1] >= budget.unsqueeze(-1)).sum(-1, keepdim=True).clamp(min=1) - 1
    most, least = above.gather(-1, index).squeeze(-1), above.gather(-1, index + 1).squeeze(-1)
    linear = (budget - least) / (most - least).clamp(min=1)
    exponential = (budget / least).log() / (most / least).log()
    share = torch.where((least > 0) & (most > least), exponential, linear).clamp(0, 1)
    grid = edges()
    lower, upper = grid[index.squeeze(-1)], grid[index.squeeze(-1) + 1]
    return upper - share * (upper - lower)


def mean_of_limits(limits: Tensor, placement: str, alpha: float) -> Tensor:
    """mean + alpha x standard deviation (of all, not of a sample) of the counted values: [..., BINS] -> float64 [...].

    For post-softmax placement mean and deviation are those of weights, and the result is a logarithm again.
    """
    grid = edges()
    values = (grid[1:] + grid[:-1]) / 2
    if placement == "post-softmax":
        values = values.clamp(max=0).exp()
    share = limits.double() / limits.sum(-1, keepdim=True).clamp(min=1)
    mean = (share * values).sum(-1)
    deviation = (share * (values - mean.unsqueeze(-1)) ** 2).sum(-1).sqrt()
    theta = mean + alpha * deviation
    if placement == "post-softmax":
        theta = theta.clamp(min=0).log()
    return theta.clamp(float(grid[0]), float(grid[-1]))


def mass_below(mass: Tensor, theta: Tensor) -> Tensor:
    """The summed mass of keys that do not exceed theta: int64 [..., BINS], float64 [...] -> float64 [...]."""
    grid = edges()
    index = (torch.searchsorted(grid, theta.contiguous()) - 1).clamp(0, BINS - 1)
    share = (theta - grid[index]) / (grid[index + 1] - grid[index])
    inside = mass.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    upto = mass.cumsum(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return (upto - inside + share.clamp(0, 1) * inside) * MASS_UNIT


def _check(histogram: ScoreHistogram, method: Budget, estimator: str) -> None:
    seen = histogram.budget
    if (method.protect_first, method.protect_recent) != (seen.protect_first, seen.protect_recent):
        raise UsageError(
            f"calibration protected the first {seen.protect_first} and the last {seen.protect_recent} keys, and the "
            f"plan protects {method.protect_first} and {method.protect_recent}: calibrate anew"
        )
    if estimator != "mean":
        return
    if histogram.limits is None:
        raise UsageError("calibration did not count what the mean estimator needs: use count-matched")
    if (method.k, method.keep) != (seen.k, seen.keep):
        raise UsageError(
            "the mean estimator can be read only at the budget that was calibrated "
            f"({describe_kept([seen])}), not at another: use count-matched"
        )


def _long_rows(histogram: ScoreHistogram, method: Budget) -> _LongRows | None:
    lengths = histogram.rows.nonzero().flatten()
    rows_k = method.rows_k(lengths)
    lengths, rows_k = lengths[rows_k < lengths], rows_k[rows_k < lengths]
    if not len(lengths):
        return None
    buckets, place = buckets_of(lengths).unique(return_inverse=True)
    rows = histogram.rows[lengths]

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(len(buckets), dtype=torch.int64).index_add_(0, place, values)

    return _LongRows(
        buckets.tolist(), sums(rows), sums(rows * rows_k), sums(rows * lengths), int(lengths[0]), int(lengths[-1])
    )


def _stacked(counts: Counts, long: _LongRows) -> Tensor:
    """int64 [T, H, BINS]."""
    return torch.stack([counts[bucket] for bucket in long.buckets])
