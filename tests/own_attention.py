"""Attention modules as old code and remote code write them, patched by interception, and what should come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hf_sparsify.patcher.binding.attention import ModulePatch
from hf_sparsify.patcher.binding.interception import intercept
from hf_sparsify.patcher.methods import AttentionInputs, AttentionMethod, RowRanges, TopK
from tiny_models import brute_force, highest
from torch import Tensor, nn
from torch.nn import functional as F  # as torch's own code calls it

HEADS, WIDTH = 4, 3
LOWEST = torch.finfo(torch.float32).min
Calculation = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class OwnAttention(nn.Module):
    """An attention module as old code and remote code write it: query, key, value [B, H, n, D] and a mask to add."""

    def __init__(self, calculate: Calculation, heads: int | None = HEADS) -> None:
        super().__init__()
        self.calculate = calculate
        if heads is not None:
            self.num_heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.calculate(query, key, value, mask)


def weighing(softmax: Callable[[Tensor], Tensor]) -> Calculation:
    """Attention that calls a softmax."""

    def calculate(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
        return softmax(scores if mask is None else scores + mask).to(value.dtype) @ value

    return calculate


def folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention whose batch and heads are one dimension."""
    out = weighing(lambda scores: scores.softmax(-1))(*(x.flatten(0, 1) for x in (query, key, value)), mask)
    return out.unflatten(0, query.shape[:2])


def in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with one more leading dimension."""
    out = weighing(lambda scores: scores.softmax(-1))(*(x.unsqueeze(1) for x in (query, key, value)), mask)
    return out.squeeze(1)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask)


def sdpa_by_name(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(
        query=query, key=key, value=value, attn_mask=mask, dropout_p=0.0, is_causal=False, scale=WIDTH**-0.5
    )


WAYS: dict[str, Calculation] = {
    "torch.softmax": weighing(lambda scores: torch.softmax(scores, -1)),
    "torch.softmax, by name": weighing(lambda scores: torch.softmax(input=scores, dim=3)),
    "torch.special.softmax": weighing(lambda scores: torch.special.softmax(scores, -1)),
    "Tensor.softmax": weighing(lambda scores: scores.softmax(dim=-1, dtype=torch.float64)),
    "F.softmax": weighing(lambda scores: F.softmax(scores, dim=-1, dtype=torch.float32)),
    "nn.Softmax": weighing(nn.Softmax(-1)),
    "folded heads": folded,
    "blocks": in_blocks,
    "sdpa": sdpa,
    "sdpa, by name": sdpa_by_name,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value [2, H, n, D]."""
    return tuple(random(2, HEADS, keys, WIDTH, seed=seed) for seed in range(3))  # type: ignore[return-value]


def causal_mask(keys: int, lowest: float = LOWEST) -> Tensor:
    """To be added: [n, n]."""
    return torch.full((keys, keys), lowest).triu(1)


def patched(calculate: Calculation, method: AttentionMethod, heads: int | None = HEADS) -> tuple[Any, ModulePatch]:
    module, patch = OwnAttention(calculate, heads), ModulePatch("h.0.attn", "self", method, intercepted=True)
    intercept(module, patch)
    return module, patch


def expected(method: TopK, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """The definition in Python floats."""
    keys = key.shape[2]
    ranges = RowRanges.causal(keys, keys) if causal else RowRanges.all_keys(keys, keys)
    call = AttentionInputs(query, key, value, ranges, scale=WIDTH**-0.5)
    return brute_force(call, highest(method.k or 0))[0].float()
