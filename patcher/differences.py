"""How far two outputs of a model are apart, and how far rounding alone may take them."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest difference relative to the largest output. Rounding accumulates over layers; a lost mask comes near 1.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite if something is not finite."""
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def typical_difference(found: Tensor, expected: Tensor) -> float:
    """As difference, for the median position: rounding may flip a near tie of the selection here and there, while a
    lost mask moves every position."""
    error = (found - expected).abs().amax(-1).median() / expected.abs().max().clamp(min=1e-6)
    return float(error) if bool(torch.isfinite(error)) else float("inf")
