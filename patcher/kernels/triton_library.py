"""Triton, which comes with torch's CUDA builds: whether the kernels of triton_*.py can run, or why not."""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from importlib.util import find_spec

import torch

SWITCH = "SPARSIFY_TRITON"


@cache
def obstacle() -> str | None:
    """Why no Triton kernel can run, in a few words; None where they can. SPARSIFY_TRITON=0 turns them off."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return None if find_spec("triton") is not None else "no Triton"


@cache
def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on the CPU (TRITON_INTERPRET=1), which is how they are tested."""
    if obstacle() is not None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def runs_on(device: torch.device) -> bool:
    """Whether a kernel can be given tensors on a device: a GPU for whose kind they were compiled once."""
    if device.type == "cuda":
        return torch.version.hip is None and _capable(device.index)
    return device.type == "cpu" and interpreted()


@cache
def _capable(index: int | None) -> bool:
    """From compute capability 8.0 on; older ones have too few registers for the tiles."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(index) >= (8, 0)


def architecture() -> int:
    """What Triton compiles for now, such as 90; 0 where it interprets."""
    if interpreted():
        return 0
    from triton.runtime import driver

    return int(driver.active.get_current_target().arch)


def describe() -> str:
    """For `sparsify env`: the version of Triton, or why attention on a GPU runs in torch."""
    reason = obstacle()
    if reason is not None:
        return f"torch, because {'Triton is not installed' if reason == 'no Triton' else reason}"
    return f"Triton {metadata.version('triton')}"
