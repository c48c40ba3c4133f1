"""What attention on a GPU is compared with: flash attention, FlexAttention that drops what ours drops, and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..patcher.methods import AttentionInputs

SDPA, FLEX, EAGER = "SDPA", "FlexAttention", "eager"


def flash(inputs: AttentionInputs, *, causal: bool) -> Tensor:
    """SDPA by the flash backend and no other."""
    grouped = inputs.query.shape[1] != inputs.key.shape[1]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(
            inputs.query, inputs.key, inputs.value, is_causal=causal, scale=inputs.scale, enable_gqa=grouped
        )


def eager(inputs: AttentionInputs, *, causal: bool) -> Tensor:
    """As models compute it without a kernel: all scores, softmax in float32, weights in the dtype of the values."""
    each = inputs.query.shape[1] // inputs.key.shape[1]
    key, value = (tensor.repeat_interleave(each, 1) for tensor in (inputs.key, inputs.value))
    scores = inputs.query @ key.transpose(2, 3) * inputs.scale
    if causal:
        queries, keys = scores.shape[2:]
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def flex(inputs: AttentionInputs, theta: Tensor, *, causal: bool) -> Callable[[], Tensor]:
    """FlexAttention that keeps scores above theta [H]; blocks of keys that no query may see are left out."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def drop(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(score > theta[head], score, -torch.inf)

    blocks, queries, keys = None, inputs.query.shape[2], inputs.key.shape[2]
    if causal:
        blocks = compiled(create_block_mask)(
            lambda batch, head, query, key: query >= key, None, None, queries, keys, device=inputs.query.device.type
        )
    grouped = inputs.query.shape[1] != inputs.key.shape[1]
    attend, parts = compiled(flex_attention), (inputs.query, inputs.key, inputs.value)
    return lambda: attend(*parts, score_mod=drop, block_mask=blocks, scale=inputs.scale, enable_gqa=grouped)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """For the sizes that it is called with. What was compiled for other sizes is forgotten: torch compiles a function
    for a few sizes alone, and runs it uncompiled for more."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
