"""Compensation: what becomes of the softmax mass of the keys that a row drops.

Berestizshevsky et al. 2025 (arXiv 2502.08363), section on compensation; here for every method that selects keys.
SDC (softmax-denominator compensation) keeps the dropped keys in the denominator: kept weights are those of the dense
softmax and sum to less than one. VMC (V-mean compensation) gives the missing mass to a mean of value rows, so that the
output stays a convex combination of them. Without either the kept weights are renormalised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UsageError
from .chunk import Chunk, Selection

COMPENSATIONS = ("none", "sdc", "sdc+vmc")
V_MEANS = ("visible", "dropped")

# Of the command line and of patch() without a method; a method made by hand has none unless it says so. --help says it.
DEFAULT_COMPENSATION = "sdc+vmc"


def check_compensation(compensation: str, v_mean: str) -> None:
    """UsageError for what is no compensation, with what to use instead."""
    if compensation == "vmc":
        raise UsageError(
            "vmc alone changes nothing: without sdc the kept weights sum to one, and no mass is left for the mean of "
            "the values; use sdc+vmc"
        )
    if compensation not in COMPENSATIONS:
        raise UsageError(f"compensation must be one of {', '.join(COMPENSATIONS)}, not {compensation!r}")
    if v_mean not in V_MEANS:
        raise UsageError(f"v_mean must be {' or '.join(V_MEANS)}, not {v_mean!r}")


def compensated(chunk: Chunk, selection: Selection, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the kept keys under SDC, zero elsewhere [B, H, c, m], and the mass that is missing [B, H, c, 1].

    The mass of dropped keys is exact, or the estimate `selection.dropped_mass` where that is not NaN. Learned sinks are
    part of the denominator, and their share is not missing: it has no value.
    """
    dense = chunk.weights
    weights = torch.where(keep, dense, 0)
    # A row that drops nothing adds the same numbers twice, so nothing is missing there, to the bit.
    missing = (dense.sum(-1, keepdim=True) - weights.sum(-1, keepdim=True)).clamp(min=0)
    estimate = None if selection.dropped_mass is None else selection.dropped_mass(chunk, keep)
    if estimate is None:
        return weights, missing
    # dense = exp(score - max) / total, so that exact masses in units of exp(max) are weights times the total.
    total = (chunk.log_sum - chunk.row_max).exp()
    estimate = estimate.unsqueeze(-1)
    estimate = torch.where(estimate.isnan(), missing * total, estimate.to(dense.dtype))
    scale = total / (total - missing * total + estimate)
    return weights * scale, estimate / total * scale


def with_mean(chunk: Chunk, keep: Tensor, weights: Tensor, missing: Tensor, v_mean: str) -> Tensor:
    """Weights [B, H, c, m] with the missing mass spread evenly over all visible keys, or over the dropped ones alone.

    A uniform weight on values is their mean, so one product with V does both.
    """
    lengths = chunk.lengths.unsqueeze(-1)
    if v_mean == "visible":
        return torch.where(chunk.visible, weights + missing / lengths.clamp(min=1), 0)
    share = missing / (lengths - keep.sum(-1, keepdim=True)).clamp(min=1)
    return torch.where(chunk.visible & ~keep, share, weights)
