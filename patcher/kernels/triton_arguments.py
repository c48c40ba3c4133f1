"""What the Triton kernels take of an attention call, whatever the method."""

from __future__ import annotations

import torch

from ..dtypes import dtype_name
from ..methods.chunk import AttentionInputs, Observer
from ..methods.row_gradients import needs_gradients
from .triton_library import obstacle, runs_on

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


def attention_refusal(inputs: AttentionInputs, observer: Observer | None) -> str | None:
    """Why a call of any method goes the torch way, in a few words; None if nothing of what they share is against it.

    Nothing here looks into a tensor: that would wait for the GPU.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    if (reason := obstacle()) is not None:
        return reason
    if observer is not None:
        return "calibration looks at the scores"
    if inputs.dropout:
        return "dropout"
    if not runs_on(query.device):
        return f"on {query.device.type}"
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        return f"stored as {', '.join(sorted({dtype_name(tensor.dtype) for tensor in (query, key, value)}))}"
    if needs_gradients(inputs):
        return "gradients"
    width, value_width = query.shape[3], value.shape[3]
    if max(width, value_width) > WIDEST_HEAD:
        return f"head size {max(width, value_width)}"
    return None
