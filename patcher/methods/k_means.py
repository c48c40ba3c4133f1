"""k-means over rows, deterministic and blind to their order."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(points: Tensor, clusters: int, iterations: int, generator: torch.Generator) -> Tensor:
    """The cluster of every point by squared L2 distance: [B, H, N, F] -> int64 [B, H, N] in 0..clusters - 1.

    clusters: at most N. iterations: updates of the centroids, each followed by an assignment. Some clusters may stay
    empty. With at least as many clusters as distinct points every distinct point that rounding can tell from the others
    has a cluster of its own; with N clusters, every point.
    """
    direction = torch.randn(points.shape[-1], generator=generator, dtype=torch.float32).to(points)
    return k_means_along(points, clusters, iterations, direction)


@torch.no_grad()
def k_means_along(points: Tensor, clusters: int, iterations: int, direction: Tensor) -> Tensor:
    """k-means whose first centroids are spread along a direction [F]."""
    if clusters == points.shape[2]:
        return torch.arange(clusters, device=points.device).expand(points.shape[:3])
    # Distances do not depend on the origin; near zero they lose the fewest digits.
    points = points - points.mean(2, keepdim=True)
    chosen = spread_out(points, clusters, direction).unsqueeze(-1).expand(-1, -1, -1, points.shape[-1])
    centroids = points.gather(2, chosen)
    assigned = _nearest(points, centroids)
    for _ in range(iterations):
        centroids = cluster_means(points, assigned, centroids)
        assigned = _nearest(points, centroids)
    return assigned


def spread_out(points: Tensor, count: int, direction: Tensor) -> Tensor:
    """Indices int64 [B, H, count] of points spread along a direction [F]; of distinct ones as long as there are any.

    What is chosen depends on the points' values, never on where they stand.
    """
    # Summed row by row, so that equal points have equal projections.
    projected = (points * direction).sum(-1)
    ordered, order = projected.sort(dim=-1, stable=True)
    distinct = torch.zeros_like(order)
    distinct[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)
    total = distinct[..., -1:] + 1
    steps = torch.arange(count, device=points.device)
    wanted = torch.where(total > count, (2 * steps + 1) * total // (2 * count), steps.clamp(max=total - 1))
    return order.gather(-1, torch.searchsorted(distinct, wanted))


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
