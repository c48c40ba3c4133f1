"""The paper's own clustering of queries: k-means by Hamming distance over locality-sensitive hashes.

Vyas, Katharopoulos, Fleuret: Fast Transformers with Clustered Attention, 2020 (arXiv 2007.04825), section 3.2. What
differs from the authors' code: planes come from a generator of their own and not anew for every call; first centroids
are spread over the sequence's own codes, where theirs are drawn at random positions, which padding can be among; and
an empty cluster keeps its centroid, where theirs gets a random one. So nothing but the sequence itself plays a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .k_means import cluster_sizes, spread_out

MOST_BITS = 63  # a code is a positive int64 where codes are put in order


@torch.no_grad()
def hash_codes(query: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """On which side of random planes queries lie: [B, H, N, D] -> [B, H, N, bits] of 1 and -1, in the dtype of query.

    bits: 1 to 63. A plane is a normal vector and an offset, all of them standard normal; the same for all heads.
    """
    planes = torch.randn(bits, query.shape[-1] + 1, generator=generator, dtype=torch.float32).to(query)
    above = query @ planes[:, :-1].t() > planes[:, -1]
    return torch.where(above, 1.0, -1.0).to(query.dtype)


@torch.no_grad()
def hamming_k_means(codes: Tensor, clusters: int, iterations: int) -> Tensor:
    """The cluster of every code by Hamming distance: [B, H, N, bits] of 1 and -1 -> int64 [B, H, N] in 0..clusters - 1.

    clusters: at most N. iterations: updates, in which every bit of a centroid becomes that of most of its codes, -1 in
    a tie; each is followed by an assignment, to the first among equally near centroids. With at least as many clusters
    as distinct codes every distinct code has a cluster of its own; with N clusters, every query.
    """
    if clusters == codes.shape[2]:
        return torch.arange(clusters, device=codes.device).expand(codes.shape[:3])
    centroids = _first(codes, clusters)
    for _ in range(iterations):
        centroids = _majorities(codes, _nearest(codes, centroids), centroids)
    return _nearest(codes, centroids)


def _first(codes: Tensor, clusters: int) -> Tensor:
    """Centroids [B, H, C, bits], evenly spread over the distinct codes in their order as numbers."""
    places = 2 ** torch.arange(codes.shape[-1], device=codes.device)
    ordered, order = ((codes > 0) * places).sum(-1).sort(dim=-1)
    chosen = order.gather(-1, spread_out(ordered, clusters))
    return codes.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, codes.shape[-1]))


def _majorities(codes: Tensor, assigned: Tensor, centroids: Tensor) -> Tensor:
    """What most codes of each cluster have, bit by bit; an empty cluster keeps its centroid."""
    sums = torch.zeros_like(centroids).scatter_add(2, assigned.unsqueeze(-1).expand_as(codes), codes)
    empty = cluster_sizes(assigned, centroids.shape[2]).unsqueeze(-1) == 0
    return torch.where(empty, centroids, torch.where(sums > 0, 1.0, -1.0).to(codes.dtype))


def _nearest(codes: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid: the product of two codes is bits - 2 x their distance, and exact."""
    return torch.argmax(codes @ centroids.transpose(2, 3), dim=-1)
