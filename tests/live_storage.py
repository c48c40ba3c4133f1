"""What operations make: the sizes of their tensors, and how many bytes are alive, the same on every machine."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside the block, as long as these live.

    live: now. peak: the most at any time. What existed before is not counted, nor what an operation uses inside itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Does not count these, which existed before."""
        for tensor in tensors:
            self._note(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ignore(*(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._note(storage, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _note(self, storage: UntypedStorage, size: int) -> None:
        address = storage._cdata
        if address not in self._known:
            self.live += size
            self._known[address] = weakref.finalize(storage, self._freed, address, size)

    def _freed(self, address: int, size: int) -> None:
        self.live -= size
        del self._known[address]


class TensorSizes(TorchDispatchMode):
    """Remembers how many elements the tensors have that operations make: the largest, and all together."""

    largest = 0
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                self.total += tensor.numel()
        return out
