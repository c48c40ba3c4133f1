"""Tensors as the native library reads them: addresses and strides."""

from __future__ import annotations

from torch import Tensor


def as_rows(tensor: Tensor) -> Tensor:
    """[B, H, n, D] with the elements of a row side by side: the same tensor where they are, else a copy."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The same tensor where it is contiguous, else a copy; cheaper to ask than to call."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def strided(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides over batch, head and row of [B, H, n, D]; zeros for None."""
    if tensor is None:
        return 0, 0, 0, 0
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, head, row


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
