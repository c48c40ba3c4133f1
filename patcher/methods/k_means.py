"""k-means over rows, deterministic and blind to their order."""

from __future__ import annotations

import torch
from torch import Tensor

# The centroids' updates look at no more points per cluster; more of them move a mean by less and less.
POINTS_PER_CLUSTER = 20


def k_means(points: Tensor, clusters: int, iterations: int, generator: torch.Generator) -> Tensor:
    """The cluster of every point by squared L2 distance: [B, H, N, F] -> int64 [B, H, N] in 0..clusters - 1.

    clusters: at most N. iterations: updates of the centroids, each followed by an assignment. Where there are more than
    `training_points`, updates look at so many of them, evenly spread along a random direction. Some clusters may stay
    empty. With at least as many clusters as distinct points every distinct point that rounding can tell from the others
    has a cluster of its own; with N clusters, every point.
    """
    return k_means_along(points, clusters, iterations, random_direction(points.shape[-1], generator).to(points))


def random_direction(width: int, generator: torch.Generator) -> Tensor:
    """float32 [width]."""
    return torch.randn(width, generator=generator, dtype=torch.float32)


def training_points(clusters: int) -> int:
    """How many points the updates look at, at most."""
    return POINTS_PER_CLUSTER * clusters


@torch.no_grad()
def k_means_along(points: Tensor, clusters: int, iterations: int, direction: Tensor) -> Tensor:
    """k-means whose first centroids are spread along a direction [F]."""
    if clusters == points.shape[2]:
        return torch.arange(clusters, device=points.device).expand(points.shape[:3])
    # Distances do not depend on the origin; near zero they lose the fewest digits.
    points = points - points.mean(2, keepdim=True)
    # Summed row by row, so that equal points have equal projections.
    ordered, order = (points * direction).sum(-1).sort(dim=-1, stable=True)
    centroids = _rows(points, order.gather(-1, spread_out(ordered, clusters)))
    sample = points
    if points.shape[2] > training_points(clusters):
        sample = _rows(points, order[..., _middles(points.shape[2], training_points(clusters), order.device)])
    for _ in range(iterations):
        centroids = cluster_means(sample, _nearest(sample, centroids), centroids)
    return _nearest(points, centroids)


def spread_out(ordered: Tensor, count: int) -> Tensor:
    """Indices int64 [B, H, count] into numbers [B, H, N] in their order: of distinct ones as long as there are any."""
    distinct = torch.zeros_like(ordered, dtype=torch.int64)
    distinct[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)
    total = distinct[..., -1:] + 1
    steps = torch.arange(count, device=ordered.device)
    wanted = torch.where(total > count, (2 * steps + 1) * total // (2 * count), steps.clamp(max=total - 1))
    return torch.searchsorted(distinct, wanted)


def _middles(length: int, count: int, device: torch.device) -> Tensor:
    """The middles of `count` equal shares of 0..length - 1."""
    return (2 * torch.arange(count, device=device) + 1) * length // (2 * count)


def _rows(points: Tensor, index: Tensor) -> Tensor:
    """Points [B, H, N, F] at index [B, H, m]."""
    return points.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, points.shape[-1]))


def cluster_means(points: Tensor, assigned: Tensor, empty: Tensor) -> Tensor:
    """The mean of each cluster's points, [B, H, C, F]; a cluster without any keeps its row of `empty`, [B, H, C, F]."""
    sums = torch.zeros_like(empty).scatter_add(2, assigned.unsqueeze(-1).expand_as(points), points)
    sizes = cluster_sizes(assigned, empty.shape[2]).unsqueeze(-1)
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), empty)


def cluster_sizes(assigned: Tensor, clusters: int) -> Tensor:
    """Points per cluster, int64 [B, H, clusters]."""
    sizes = torch.zeros(*assigned.shape[:2], clusters, dtype=torch.int64, device=assigned.device)
    return sizes.scatter_add(2, assigned, torch.ones_like(assigned))


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid, the first among equals."""
    lengths = (centroids * centroids).sum(-1).unsqueeze(2)
    return torch.argmin(lengths - 2 * points @ centroids.transpose(2, 3), dim=-1)
