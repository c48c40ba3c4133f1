"""The first rows of a causal call, which are too short for their method, by torch's own attention.

The rows kernel gathers value rows one by one, which costs more than a matrix product where all of them are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.visibility import RowRanges


def fill_short_rows(out: Tensor, inputs: AttentionInputs, min_length: int) -> int:
    """Writes the output of the first rows of a call that see fewer than min_length keys; returns how many these are.

    out: [B, H, q, E]. None are written unless row i of every sequence sees the keys 0..i, nor if scores have a bias,
    soft cap or sinks, nor if something comes out that is not finite: it may stem from a value that no row sees.
    """
    rows = min(min_length - 1, inputs.query.shape[2])
    if rows < 1 or inputs.bias is not None or inputs.softcap is not None or inputs.sinks is not None:
        return 0
    if not _is_causal(inputs, rows):
        return 0
    query, key, value = (part[:, :, :rows] for part in (inputs.query, inputs.key, inputs.value))
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=inputs.scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    if not bool(torch.isfinite(dense).all()):
        return 0
    out[:, :, :rows] = dense
    return rows


def _is_causal(inputs: AttentionInputs, rows: int) -> bool:
    """Whether the first rows see the keys 0..i each."""
    seen = inputs.visibility
    if not isinstance(seen, RowRanges):
        return False
    last = torch.arange(1, rows + 1, device=seen.last.device)
    return not bool(seen.first[:, :rows].any()) and bool((seen.last[:, :rows] == last).all())
