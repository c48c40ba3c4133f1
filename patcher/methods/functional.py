"""Whether a function transform of torch.func (grad, vmap, jvp ...) is at work."""

from __future__ import annotations

import torch


def transforms_active() -> bool:
    """Whether this call is inside one. The autograd functions of this package do not take part: plain torch does."""
    active: bool = torch._C._are_functorch_transforms_active()  # there is no public name for it
    return active
