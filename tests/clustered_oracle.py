"""Clustered attention spelled out: the paper's formulas row by row, in float64, with all N x N weights.

What tests of clustered attention call an invariant by its number:

 1 as many clusters as distinct queries: dense          2 every key refined: dense, whatever the clusters
 3 equal queries: dense for any number of clusters      4 empty clusters, more clusters than queries: no NaN, no error
 5 equal to the formulas, given the clusters            6 weights are a distribution: sums, hull, linear in V
 7 refining brings no row further from dense (L1, KL)   8 more refined keys, no larger distance
 9 a shift of all keys changes nothing                 10 the order of the keys changes nothing
11 the order of queries, heads, batch changes nothing  12 what stands in the padding changes nothing
13 alone as in a padded batch                          14 padding on the left, or with holes
15 a sequence of padding alone: zeros                  16 padding queries: zeros
17 and 18 causal, or otherwise unlike rows: refused    19 own generator, no global random state, same seed same bits
20 bfloat16, float16, float64                          21 gradients, clusters held fixed
22 compiles without a graph break                      23 memory linear in length
24 short sequences stay dense if asked to              25 equal to an independent implementation, given the clusters
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hf_sparsify.patcher.methods import AttentionInputs, attend_rows
from tiny_models import attention_inputs
from torch import Tensor


def self_attention(length: int = 20, **fields: Any) -> AttentionInputs:
    """Random inputs where every query sees every key; float64 unless said otherwise."""
    return attention_inputs("all", queries=length, keys=length, **fields)


def random_clusters(call: AttentionInputs, clusters: int, seed: int = 0) -> Tensor:
    """Any cluster for any query, int64 [B, H, N]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, clusters, call.query.shape[:3], generator=generator)


def dense(call: AttentionInputs) -> Tensor:
    return attend_rows(call)[0]


def with_rows_as_output(call: AttentionInputs) -> AttentionInputs:
    """The same with an identity matrix for V, so that the output is the attention rows [B, H, N, N]."""
    batch, groups, keys = call.key.shape[:3]
    return replace(call, value=torch.eye(keys, dtype=call.value.dtype).expand(batch, groups, -1, -1))


def oracle_rows(call: AttentionInputs, assigned: Tensor, refined: int) -> Tensor:
    """Attention rows [B, H, N, n] by the paper, given the cluster of every query; refined 0 is the plain variant."""
    repeats = call.query.shape[1] // call.key.shape[1]
    key = call.key.double().repeat_interleave(repeats, 1)
    scores = call.query.double() @ key.transpose(2, 3) * call.scale
    if call.bias is not None:
        scores = scores + call.bias.double()
    rows = torch.zeros_like(scores)
    for b, h in torch.cartesian_prod(torch.arange(scores.shape[0]), torch.arange(scores.shape[1])).tolist():
        for cluster in assigned[b, h].unique().tolist():
            members = (assigned[b, h] == cluster).nonzero().squeeze(-1).tolist()
            centroid = sum(scores[b, h, i] for i in members) / len(members)
            shared = _capped(call, centroid).softmax(-1)
            strongest = centroid.argsort(descending=True)[:refined]
            for i in members:
                rows[b, h, i] = shared
                own = _capped(call, scores[b, h, i, strongest]).softmax(-1)
                rows[b, h, i, strongest] = shared[strongest].sum() * own
    return rows


def oracle(call: AttentionInputs, assigned: Tensor, refined: int) -> Tensor:
    """The output [B, H, N, E] by the paper, in float64."""
    value = call.value.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    return oracle_rows(call, assigned, refined) @ value


def _capped(call: AttentionInputs, scores: Tensor) -> Tensor:
    return scores if call.softcap is None else call.softcap * (scores / call.softcap).tanh()
