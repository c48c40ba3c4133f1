"""A CPU that is treated as a GPU: nobody may look at what a tensor holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import asking
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = (
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "_unique2"),
    *("allclose", "bincount", "repeat_interleave"),
)
# These do not come to the dispatcher where a tensor is on the CPU.
READS = ("tolist", "numpy", "cpu")


class Look(AssertionError):
    """Something looked at a tensor."""


class no_looks(TorchDispatchMode):  # read as `with no_looks():`
    """Inside, an operation that waits for a GPU raises Look."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            getattr(index, "dtype", None) is torch.bool for index in (args[1] if len(args) > 1 else None) or ()
        )
        if name in LOOKS or by_mask:
            raise Look(f"{func} looks at a tensor")
        return func(*args, **(kwargs or {}))


@contextmanager
def asking_nothing() -> Iterator[None]:
    """The general way is taken everywhere, and a look raises Look."""
    with pytest.MonkeyPatch.context() as patching, no_looks():
        patching.setattr(asking, "answers", lambda tensor: False)
        for name in READS:
            patching.setattr(torch.Tensor, name, _refuse)
        yield


def _refuse(tensor: torch.Tensor, *args: Any) -> None:
    raise Look("a tensor is read")
