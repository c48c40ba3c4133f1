"""Calls of top-k feed-forward whose kernels triton_builds.py compiles."""

from __future__ import annotations

from functools import partial

import torch
from hf_sparsify.patcher.kernels.triton_feed_forward import project

D_MODEL, D_FF, K = 4096, 14336, 1434


def call(dtype: torch.dtype, tokens: int, is_rows: bool, d_model: int = D_MODEL) -> None:
    """Of tensors that nothing is written to, so that they take no memory."""
    weight = torch.empty((D_FF, d_model) if is_rows else (d_model, D_FF), dtype=dtype)
    bias = torch.empty(d_model, dtype=dtype) if is_rows else None
    project(torch.empty(tokens, D_FF, dtype=dtype), weight, bias, K, is_rows=is_rows)


CALLS = [
    partial(call, dtype, tokens, is_rows)
    for dtype, tokens, is_rows in (
        (torch.float32, 1, False),
        (torch.bfloat16, 1, False),
        (torch.bfloat16, 4, True),
        (torch.float16, 1, False),
    )
]
# Nothing new: the number of tokens, and so of parts, does not matter.
CALLS += [partial(call, torch.bfloat16, tokens, False) for tokens in (2, 3, 5)]
# Rows that begin at odd places.
CALLS += [partial(call, torch.bfloat16, 1, True, 4099)]
