"""Tensors on a GPU that is not there: torch knows their device and shapes, and refuses a look at their data.

Code that waits for the GPU raises DataDependentOutputException or DynamicOutputShapeException, code that mixes devices
raises FakeTensorDeviceMismatchError. Copies from and to the CPU, which wait too, are refused inside `no_copies`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
# The numbers of kinds of devices in c10/core/DeviceType.h.
_CPU_KIND, _CUDA_KIND = 0, 1
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside, every tensor that is made is fake, and can be on CUDA; those that are there already are taken as fakes."""
    with _guard(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def _guard() -> Iterator[None]:
    """A torch without CUDA refuses even to index a fake tensor there, as it has no way to switch devices. The way of
    the CPU, which does nothing, stands in for it."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if not library.exists():
        pytest.skip("torch lies elsewhere on this system")
    registry = (ctypes.c_void_p * (_CUDA_KIND + 1)).in_dll(ctypes.CDLL(str(library)), _REGISTRY)
    own = registry[_CUDA_KIND]
    registry[_CUDA_KIND] = own or registry[_CPU_KIND]
    try:
        yield
    finally:
        registry[_CUDA_KIND] = own


class no_copies(TorchDispatchMode):  # read as `with no_copies():`
    """Inside, no operation makes or takes a tensor on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                raise RuntimeError(f"{func} has to do with a tensor {tuple(leaf.shape)} on the CPU")
        return out


def like(tensor: Tensor) -> Tensor:
    """A fake tensor on CUDA in place of a real one."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def to_cuda(model: nn.Module) -> None:
    """Puts fake weights into a real model."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = made.setdefault(id(tensor), like(tensor))  # some modules share theirs
