"""A Linear's weight [d_model, d_ff] as rows [d_ff, d_model] that kernels can read one by one: a transposed copy.

Who asks has the weight alone (an operator in a graph), so the copies are kept here, each as long as its weight lives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .library import native

copies = WeakTensorKeyDictionary()  # of whatever kind


def weight_rows(weight: Tensor) -> Tensor:
    """[d_model, d_ff] on the CPU -> the same as [d_ff, d_model], contiguous.

    Copied at the first call, and again when the weight has changed since.
    """
    rows = weight.detach().t()
    if rows.is_contiguous():
        return rows
    copy = copies.get(weight)
    if not isinstance(copy, _Copy) or not copy.is_fresh(weight):
        copies[weight] = copy = _Copy(weight.detach(), state_of(weight))
    return copy.rows


def forget(weight: Tensor) -> None:
    """Gives back the memory of a weight's copy, if there is one."""
    copies.pop(weight, None)


class _Copy:
    """The rows of a weight, and what tells that they are out of date. Nothing here keeps the weight itself alive."""

    def __init__(self, weight: Tensor, state: tuple[Any, ...]) -> None:
        self.rows = weight.t().contiguous()
        self.state = state
        parts = _sample(weight)
        self.samples = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        self.places = [
            (part.data_ptr(), part.stride(0) * size, part.shape[0], part.shape[1] * size, sample.data_ptr())
            for part, sample in zip(parts, self.samples, strict=True)
            for size in [part.element_size()]
        ]

    def is_fresh(self, weight: Tensor) -> bool:
        """Whether the weight is still what was copied. Changes through `weight.data` (merging an adapter) leave no
        trace but the values, so some of every row and column are compared, byte for byte."""
        if state_of(weight) != self.state:
            return False
        library = native()
        if library is None:
            return all(map(torch.equal, _sample(weight.detach()), self.samples))
        return all(library.same_pieces(*place) for place in self.places)


def state_of(weight: Tensor) -> tuple[Any, ...]:
    """Changes when the weight gets other memory or an operation writes to it."""
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.shape, weight.stride(), weight.dtype


def _sample(weight: Tensor) -> list[Tensor]:
    """Elements of [d_model, d_ff], at least one of every row and every column: of each row the next few columns, which
    lie side by side and so are quick to read, or else diagonals."""
    rows, columns = weight.shape
    if rows > columns:
        return [weight[start : start + columns].diagonal()[:, None] for start in range(0, rows, columns)]
    down, right = weight.stride()
    if right != 1:
        return [weight[:, start : start + rows].diagonal()[:, None] for start in range(0, columns, rows)]
    each = columns // rows
    return [weight.as_strided((rows, each), (down + each, 1)), weight[:1, rows * each :]]
