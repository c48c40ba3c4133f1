"""Tensors as the native library reads them, and what it takes of an attention call whatever the method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import dtype_name
from ..methods.chunk import AttentionInputs, Observer
from ..methods.row_gradients import needs_gradients
from .library import native

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = range(8, 257, 8)
Place = tuple[int, int, int, int]  # address and strides over batch, head and row
NOWHERE: Place = (0, 0, 0, 0)
MOST_KEYS = 2**24  # positions and clusters are counted in floats


def attention_refusal(inputs: AttentionInputs, observer: Observer | None) -> str | None:
    """Why a call of any method goes the torch way, in a few words; None if nothing of what they share is against it."""
    query, key, value = inputs.query, inputs.key, inputs.value
    if native() is None:
        return "no native library"
    if observer is not None:
        return "calibration looks at the scores"
    if inputs.dropout:
        return "dropout"
    if not query.is_cpu:
        return f"on {query.device.type}"
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        return f"stored as {', '.join(sorted({dtype_name(tensor.dtype) for tensor in (query, key, value)}))}"
    if needs_gradients(inputs):
        return "gradients"
    width, (_, _, keys, value_width) = query.shape[3], value.shape
    if width not in WIDTHS or value_width not in WIDTHS:
        return f"head size {value_width if width in WIDTHS else width}"
    return f"{keys} keys" if keys >= MOST_KEYS else None


def as_rows(tensor: Tensor) -> Tensor:
    """[B, H, n, D] with the elements of a row side by side: the same tensor where they are, else a copy."""
    return tensor if tensor.stride()[3] == 1 else tensor.contiguous()


def located(tensor: Tensor) -> tuple[Tensor, Place]:
    """As as_rows, and where that lies."""
    batch, head, row, element = tensor.stride()
    if element == 1:
        return tensor, (tensor.data_ptr(), batch, head, row)
    tensor = tensor.contiguous()
    return tensor, strided(tensor)


def contiguous(tensor: Tensor) -> Tensor:
    """The same tensor where it is contiguous, else a copy; cheaper to ask than to call."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def strided(tensor: Tensor) -> Place:
    """Where [B, H, n, D] lies."""
    batch, head, row, _ = tensor.stride()
    return tensor.data_ptr(), batch, head, row
