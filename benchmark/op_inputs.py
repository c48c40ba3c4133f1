"""Random attention inputs, thresholds that fit them, and what our attention is compared with: torch's own, and the
product of queries and keys alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..patcher.methods import AttentionInputs, RowRanges, TopTheta
from ..patcher.thresholds import ModuleThresholds

WIDTH = 64  # of a head
SHARE = 0.1  # of the keys that thresholds keep
SAMPLE = 64  # queries that thresholds are fitted on
TILE = 512  # queries and keys of one score product, whose result stays in the second-level cache


def attention(
    queries: int, keys: int, heads: int, groups: int, *, causal: bool = False, seed: int = 0
) -> AttentionInputs:
    """One sequence in float32 whose scores are about standard normal."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads, queries, WIDTH, generator=generator)
    key, value = (torch.randn(1, groups, keys, WIDTH, generator=generator) for _ in range(2))
    visible = RowRanges.causal(queries, keys) if causal else RowRanges.all_keys(queries, keys)
    return AttentionInputs(query, key, value, visible, scale=WIDTH**-0.5)


def exact(inputs: AttentionInputs) -> AttentionInputs:
    """The same in float64."""
    return replace(inputs, query=inputs.query.double(), key=inputs.key.double(), value=inputs.value.double())


def queries_at(inputs: AttentionInputs, picked: Tensor) -> AttentionInputs:
    """Some of the queries of `attention`, at their positions int64 [n]."""
    last = inputs.visibility.lengths()[:, 0, picked]
    return replace(inputs, query=inputs.query[:, :, picked], visibility=RowRanges(torch.zeros_like(last), last))


def dense(inputs: AttentionInputs, *, causal: bool = False) -> Tensor:
    """torch's own attention."""
    query, key, value = inputs.query, inputs.key, inputs.value
    return scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=inputs.scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def score_product(inputs: AttentionInputs) -> Callable[[], None]:
    """Every score of every head by torch.matmul, tile after tile into the same memory."""
    queries, keys = inputs.query[0], inputs.key[0].transpose(1, 2)
    side = min(TILE, queries.shape[1])
    tile = torch.empty(side, side)

    def run() -> None:
        for query, key in zip(queries, keys, strict=True):
            for rows in query.split(side):
                for columns in key.split(side, 1):
                    torch.matmul(rows, columns, out=tile)

    return run


def thresholds(inputs: AttentionInputs, method: TopTheta, share: float = SHARE) -> ModuleThresholds:
    """A table that keeps a share of the keys on average.

    The queries are alike, so that any of them may stand for the query at any position.
    """
    heads, keys = inputs.query.shape[1], inputs.key.shape[2]
    lengths = [2**i for i in range(4, int(math.log2(keys)) + 1)] if inputs.query.shape[2] > 1 else [keys]
    key = inputs.key[0].repeat_interleave(heads // inputs.key.shape[1], 0)
    scores = inputs.query[0, :, :SAMPLE] @ key.transpose(1, 2) * inputs.scale
    theta = torch.empty(heads, len(lengths))
    for column, length in enumerate(lengths):
        compared = scores[..., :length]
        if method.placement == "post-softmax":
            compared = compared.log_softmax(-1)
        elif method.placement == "max-relative":
            compared = compared - compared.amax(-1, keepdim=True)
        theta[:, column] = _exceeded(compared.flatten(1), share)
    return ModuleThresholds(torch.tensor(lengths).float(), theta, 1, keys, placement=method.placement)


def _exceeded(values: Tensor, share: float) -> Tensor:
    """What a share of every row's values [H, n] exceeds: between two of them, so that rounding changes nothing."""
    highest = values.topk(max(1, round(share * values.shape[1])) + 1).values
    return highest[:, -2:].mean(1)
