"""Whether a function transform of torch.func (grad, vjp, jvp ...) is at work."""

from __future__ import annotations

import torch


def transforms_active() -> bool:
    """Whether this call is inside one.

    They take no autograd function with a backward() of its own, no checkpoint, and no look at the memory of a tensor.
    """
    active: bool = torch._C._are_functorch_transforms_active()  # there is no public name for it
    return active
