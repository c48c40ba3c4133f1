"""What torch.func does to a call: its transforms take plain autograd alone."""

from __future__ import annotations

import torch


def transforms_active() -> bool:
    """Whether a transform of torch.func is running (grad, vjp, jvp and others).

    They take no autograd function with a backward() of its own, no checkpoint, and no look at the memory of a tensor.
    """
    return bool(torch._C._are_functorch_transforms_active())
