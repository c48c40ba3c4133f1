"""Dropout on weights, with masks that can be drawn a second time.

A call draws one seed from torch's global generator and its masks, chunk after chunk, from a generator of its own. The
backward pass draws them again from the seed: it neither reads nor moves the global state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_seed() -> int:
    """A seed from the global generator."""
    return int(torch.randint(2**63 - 1, ()))


def dropout_mask(weights: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """What weights are multiplied by, like them: 0 with a probability, else 1 / (1 - probability)."""
    stays = 1 - probability
    mask = torch.empty_like(weights, memory_format=torch.contiguous_format).bernoulli_(stays, generator=generator)
    return mask.mul_(1 / stays) if stays else mask
