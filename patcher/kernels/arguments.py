"""Tensors as the native library reads them, and what it takes of an attention call whatever the method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import dtype_name
from ..methods.chunk import AttentionInputs, Observer
from .library import native

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = range(8, 257, 8)
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
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients"
    for width in (query.shape[3], value.shape[3]):
        if width not in WIDTHS:
            return f"head size {width}"
    return None


def as_rows(tensor: Tensor) -> Tensor:
    """[B, H, n, D] with the elements of a row side by side: the same tensor where they are, else a copy."""
    return tensor if tensor.stride()[3] == 1 else tensor.contiguous()


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
