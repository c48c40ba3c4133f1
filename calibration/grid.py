"""The fixed grid that calibration counts on: bins of scores, buckets of row lengths.

Both are part of the format of a histogram file and never depend on the data, so that counts of any two runs can be
added.

Bins: what is binned is x, a score less what the placement compares with, in units of the score (natural logarithm), so
that one grid serves all placements. 4 + |x| is cut into 64 equal steps per doubling, up to 1024: 512 bins on either
side of zero, 0.0625 wide near it, 0.125 around 8 and 0.25 around 16; the outermost take what lies beyond 1020. Edges
are exact in float32, and every bin is (lower, upper], so that a threshold on an edge keeps just the bins above it. On
SmolLM2-135M count-matched thresholds for k = 64 keep k to within 0.7 % on the very rows that were counted, in every
head and bucket; with half as many bins it was 1.7 %.

Buckets: row lengths grow by 1.25 from one to the next, up to 131072 keys; longer rows share the last one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OFFSET = 4.0
STEPS = 64  # per doubling of 4 + |x|
DOUBLINGS = 8
HALF = STEPS * DOUBLINGS
BINS = 2 * HALF

# float32: the bits above the mantissa's last 17 count the steps of 1/64 within a power of two.
_SHIFT = 23 - STEPS.bit_length() + 1
_FIRST = int(torch.tensor(OFFSET).view(torch.int32)) >> _SHIFT

BUCKET_GROWTH = 1.25
LONGEST = 131072
_STARTS = torch.tensor(
    sorted({math.ceil(BUCKET_GROWTH**power) for power in range(1, 100) if BUCKET_GROWTH**power <= LONGEST})
)
BUCKETS = len(_STARTS) + 1


def edges() -> Tensor:
    """The edges of the bins, ascending, float64 [BINS + 1]; bin i is (edges[i], edges[i + 1]]."""
    step = torch.arange(HALF + 1, dtype=torch.float64)
    positive = OFFSET * torch.exp2(step // STEPS) * (1 + step % STEPS / STEPS) - OFFSET
    return torch.cat([-positive.flip(0)[:-1], positive])


def bins_of(x: Tensor) -> Tensor:
    """The bin of every x, int32 like it; a NaN counts as highest."""
    x = x.float()
    bits = x.abs().add_(OFFSET).view(torch.int32)
    bits -= (x > 0).int()  # a positive x on an edge belongs to the bin below it
    step = (bits >> _SHIFT).sub_(_FIRST).clamp_(max=HALF - 1)
    return torch.where(x <= 0, -1 - step, step).add_(HALF)


def buckets_of(lengths: Tensor) -> Tensor:
    """The bucket of every row length, int64 like it."""
    return torch.bucketize(lengths.contiguous(), _STARTS.to(lengths.device), right=True)
