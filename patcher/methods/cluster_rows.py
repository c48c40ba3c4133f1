"""Attention cluster by cluster: the part of clustered attention that comes after the queries are grouped.

No (queries x keys) tensor is made: the largest are (clusters x keys) and (queries x refined keys) per head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunk import AttentionInputs
from .distance_bias import DistanceBias
from .k_means import cluster_means, cluster_sizes

# Refined queries are handled in blocks of one cluster each, of at least so many queries.
SMALLEST_BLOCK = 16


def attend_clusters(inputs: AttentionInputs, assigned: Tensor, clusters: int, refined: int) -> Tensor:
    """Attention by clusters of queries: [B, H, N, E] in the dtype of value; every query sees every key.

    assigned: cluster of each query, int64 [B, H, N]. refined: how many keys per cluster are attended to exactly, 0 for
    plain clustered attention. With T the refined keys of a cluster, A its centroid's weights and m their sum over T, a
    query's weights are A outside T, and inside T m times its own softmax over T.
    """
    query, value = working(inputs.query), working(inputs.value)
    scores = _centroid_scores(inputs, query, assigned, clusters)
    shares = scores.softmax(-1)
    weights = _dropped(shares, inputs.dropout)
    if not refined:
        return _of_cluster(_group_matmul(weights, value), assigned).to(inputs.value.dtype)
    # The mass is the centroid's, before dropout, as in the authors' code.
    strongest = scores.topk(refined, dim=-1).indices
    mass = shares.gather(-1, strongest).sum(-1)
    rest = _group_matmul(weights.scatter(-1, strongest, 0), value)
    exact = _refine(inputs, query, value, assigned, strongest, mass)
    return (_of_cluster(rest, assigned) + exact).to(inputs.value.dtype)


def _centroid_scores(inputs: AttentionInputs, query: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """The mean score row of each cluster [B, H, C, n], which is the row of its mean query."""
    nothing = query.new_zeros(*query.shape[:2], clusters, query.shape[-1])
    centroids = cluster_means(query, assigned, nothing)
    scores = _group_matmul(centroids, working(inputs.key).transpose(2, 3)) * inputs.scale
    if inputs.bias is not None:
        members = query.new_zeros(*nothing.shape[:3], query.shape[2]).scatter(2, assigned.unsqueeze(2), 1.0)
        sizes = cluster_sizes(assigned, clusters).clamp(min=1).unsqueeze(-1)
        bias = inputs.bias.to(query)
        scores = scores + (bias.under(members) if isinstance(bias, DistanceBias) else members @ bias) / sizes
    return _capped(scores, inputs.softcap)


def _refine(
    inputs: AttentionInputs, query: Tensor, value: Tensor, assigned: Tensor, strongest: Tensor, mass: Tensor
) -> Tensor:
    """Every query's attention over its cluster's strongest keys [B, H, C, k], scaled to their mass [B, H, C].

    Queries go into blocks of one cluster each, so that a block is one matrix product and an overfull cluster only
    takes more blocks: at most N / size + C of them.
    """
    batch, heads, length = query.shape[:3]
    clusters, refined = strongest.shape[2:]
    size = max(SMALLEST_BLOCK, -(-length // clusters))
    slots, cluster_of_block = _blocks(assigned, clusters, size)
    blocks = cluster_of_block.shape[-1]
    laid_out = query.new_zeros(batch, heads, blocks * size, query.shape[-1])
    laid_out = laid_out.scatter(2, slots.unsqueeze(-1).expand_as(query), query)
    keys = _of_cluster(_rows_of(working(inputs.key), strongest), cluster_of_block)
    scores = laid_out.view(batch, heads, blocks, size, -1) @ keys.transpose(-1, -2) * inputs.scale
    if inputs.bias is not None:
        own = _bias_of_keys(inputs.bias.to(query), _of_cluster(strongest, assigned))
        spread = query.new_zeros(batch, heads, blocks * size, refined)
        scores = scores + spread.scatter(2, slots.unsqueeze(-1).expand_as(own), own).view_as(scores)
    weights = _capped(scores, inputs.softcap).softmax(-1) * mass.gather(-1, cluster_of_block)[..., None, None]
    values = _of_cluster(_rows_of(value, strongest), cluster_of_block)
    out = (_dropped(weights, inputs.dropout) @ values).flatten(2, 3)
    return out.gather(2, slots.unsqueeze(-1).expand(-1, -1, -1, out.shape[-1]))


def _bias_of_keys(bias: Tensor | DistanceBias, keys: Tensor) -> Tensor:
    """The bias of each query and some keys of its own, int64 [B, H, N, k], alike."""
    return bias.at(keys) if isinstance(bias, DistanceBias) else bias.expand(*keys.shape[:2], -1, -1).gather(-1, keys)


def _blocks(assigned: Tensor, clusters: int, size: int) -> tuple[Tensor, Tensor]:
    """Where each query goes in a row of blocks of `size` slots [B, H, N], and the cluster of each block [B, H, P]."""
    length = assigned.shape[-1]
    in_order, order = assigned.sort(dim=-1, stable=True)
    sizes = cluster_sizes(assigned, clusters)
    taken = (sizes + size - 1) // size
    past_blocks, past_queries = taken.cumsum(-1), sizes.cumsum(-1)
    first_slot, first_query = (past_blocks - taken) * size, past_queries - sizes
    places = torch.arange(length, device=assigned.device) + (first_slot - first_query).gather(-1, in_order)
    slots = torch.empty_like(assigned).scatter(-1, order, places)
    numbers = torch.arange(length // size + clusters, device=assigned.device).expand(*assigned.shape[:2], -1)
    return slots, torch.searchsorted(past_blocks, numbers.contiguous(), right=True).clamp(max=clusters - 1)


def _rows_of(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of [B, G, n, F] at index [B, H, C, k], H a multiple of G: [B, H, C, k, F]."""
    batch, groups, _, width = tensor.shape
    flat = index.reshape(batch, groups, -1, 1).expand(-1, -1, -1, width)
    return tensor.gather(2, flat).view(*index.shape, width)


def _of_cluster(tensor: Tensor, index: Tensor) -> Tensor:
    """Entries of [B, H, C, ...] at index [B, H, m]: [B, H, m, ...]."""
    shape = tensor.shape[3:]
    wide = index.view(*index.shape, *(1 for _ in shape)).expand(*index.shape, *shape)
    return tensor.gather(2, wide)


def _group_matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """[B, H, C, a] @ [B, G, a, b] -> [B, H, C, b], the matrix of a KV head for all its query heads."""
    batch, heads, count, width = rows.shape
    groups = matrix.shape[1]
    return (rows.reshape(batch, groups, heads // groups * count, width) @ matrix).view(batch, heads, count, -1)


def working(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _dropped(weights: Tensor, probability: float) -> Tensor:
    return torch.nn.functional.dropout(weights, probability) if probability else weights
