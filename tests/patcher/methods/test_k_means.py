"""k-means: what its clusters have to be, whatever the points and their order."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.patcher.methods import k_means as module
from hf_sparsify.patcher.methods.k_means import (
    cluster_means,
    cluster_sizes,
    k_means,
    k_means_along,
    spread_out,
    training_points,
)
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(count: int = 30, width: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """[2, 3, count, width]."""
    return torch.randn(2, 3, count, width, generator=seeded(seed), dtype=torch.float64).to(dtype)


def together(assigned: Tensor) -> Tensor:
    """Which pairs share a cluster, bool [B, H, N, N]: a partition without the clusters' numbers."""
    return assigned.unsqueeze(-1) == assigned.unsqueeze(-2)


def inertia(points: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Squared distances to the own cluster's mean, summed, [B, H]."""
    means = cluster_means(points, assigned, points.new_zeros(*points.shape[:2], clusters, points.shape[-1]))
    own = means.gather(2, assigned.unsqueeze(-1).expand_as(points))
    return (points - own).square().sum((-1, -2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clusters", [7, 8, 19, 30])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_distinct_points_never_share_a_cluster(iterations: int, clusters: int, dtype: torch.dtype) -> None:
    """Invariant 1, in k-means: 30 points of which 7 are distinct."""
    which = torch.cat([torch.arange(7), torch.randint(0, 7, (23,), generator=seeded())])
    points = random_points(7, dtype=dtype)[:, :, which]
    assigned = k_means(points, clusters, iterations, seeded())
    assert not (together(assigned) & (which.unsqueeze(-1) != which)).any()


def test_as_many_clusters_as_points_keep_apart_even_what_rounding_cannot_tell() -> None:
    points = random_points(16, dtype=torch.float32).repeat_interleave(2, 2)
    points[:, :, 1::2] += 1e-6
    assigned = k_means(points, 32, 3, seeded())
    assert torch.equal(together(assigned), torch.eye(32, dtype=torch.bool).expand(2, 3, -1, -1))


def test_groups_far_apart_are_found() -> None:
    which = torch.arange(30) % 5
    points = random_points(5)[:, :, which] * 20 + 0.01 * random_points(30, seed=1)
    assert torch.equal(together(k_means(points, 5, 3, seeded())), (which.unsqueeze(-1) == which).expand(2, 3, -1, -1))


@pytest.mark.parametrize("seed", range(3))
def test_inertia_never_rises_with_iterations(seed: int) -> None:
    points = random_points(40, seed=seed)
    sums = torch.stack([inertia(points, k_means(points, 6, n, seeded()), 6) for n in range(8)])
    assert bool((sums[1:] <= sums[:-1] + 1e-9).all())
    assert bool((sums[-1] < sums[0] - 1e-3).all())


def test_the_end_is_a_local_optimum() -> None:
    """Every point is then nearest to the mean of its own cluster."""
    points = random_points(40)
    assigned = k_means(points, 6, 50, seeded())
    means = cluster_means(points, assigned, torch.full((2, 3, 6, 4), torch.inf, dtype=torch.float64))
    assert torch.equal(torch.cdist(points, means).argmin(-1), assigned)


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_every_number_is_in_range_and_one_cluster_is_everything(iterations: int) -> None:
    points = random_points()
    assigned = k_means(points, 4, iterations, seeded())
    assert assigned.dtype == torch.int64
    assert assigned.shape == (2, 3, 30)
    assert 0 <= int(assigned.min()) <= int(assigned.max()) < 4
    assert not k_means(points, 1, iterations, seeded()).any()
    assert not k_means(points[:, :, :1], 1, iterations, seeded()).any()


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_order_of_the_points_does_not_matter(iterations: int) -> None:
    """Invariant 11, in k-means: the same partition, even the same numbers."""
    points, order = random_points(), torch.randperm(30, generator=seeded(5))
    assigned = k_means(points, 6, iterations, seeded())
    assert torch.equal(k_means(points[:, :, order], 6, iterations, seeded()), assigned[:, :, order])
    assert torch.equal(k_means(points.flip(0, 1), 6, iterations, seeded()), assigned.flip(0, 1))


def test_the_origin_does_not_matter() -> None:
    points = random_points(dtype=torch.float32)
    assert torch.equal(k_means(points + 1000, 6, 3, seeded()), k_means((points + 1000).double(), 6, 3, seeded()))


def test_empty_clusters_keep_their_centroid_and_make_no_nan() -> None:
    """Invariant 4, in k-means: a cluster without points has no mean."""
    points = random_points(5)
    assigned, kept = torch.tensor([0, 0, 3, 3, 3]).expand(2, 3, -1), random_points(4, seed=1)
    means = cluster_means(points, assigned, kept)
    torch.testing.assert_close(means[:, :, 0], points[:, :, :2].mean(2))
    torch.testing.assert_close(means[:, :, 3], points[:, :, 2:].mean(2))
    assert torch.equal(means[:, :, 1:3], kept[:, :, 1:3])
    assert torch.equal(cluster_sizes(assigned, 4), torch.tensor([2, 0, 0, 3]).expand(2, 3, -1))


def test_more_clusters_than_distinct_points_leave_some_empty() -> None:
    """Invariant 4, in k-means: 3 distinct points in 9 clusters."""
    points = random_points(3)[:, :, torch.arange(12) % 3]
    sizes = cluster_sizes(k_means(points, 9, 3, seeded()), 9)
    assert torch.equal((sizes > 0).sum(-1), torch.full((2, 3), 3))
    assert torch.equal(sizes.sum(-1), torch.full((2, 3), 12))


def test_no_more_distinct_starts_than_there_are_and_evenly_spread() -> None:
    """On a line the chosen numbers are the middles of equal shares."""
    line = torch.arange(12.0)
    assert line[spread_out(line, 4)].tolist() == [1.0, 4.0, 7.0, 10.0]
    repeated = line // 4
    assert set(repeated[spread_out(repeated, 5)].tolist()) == {0.0, 1.0, 2.0}


def test_the_same_seed_gives_the_same_and_the_global_state_stays() -> None:
    """Invariant 19, in k-means."""
    points, before = random_points(), torch.get_rng_state()
    runs = [k_means(points, 6, 1, seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(together(runs[0]), together(runs[2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_points_stay_as_they_were_and_get_no_gradient() -> None:
    points = random_points().requires_grad_()
    copy = points.detach().clone()
    assert not k_means(points, 6, 3, seeded()).requires_grad
    assert torch.equal(points, copy)


@pytest.mark.parametrize("clusters", [6, 30])
def test_compiles_as_one_graph(clusters: int) -> None:
    """Invariant 22, in k-means; only the draw of the direction stays outside."""
    points, direction = random_points(), torch.randn(4, generator=seeded(), dtype=torch.float64)
    compiled = torch.compile(k_means_along, backend="eager", fullgraph=True)
    assert torch.equal(compiled(points, clusters, 3, direction), k_means_along(points, clusters, 3, direction))


@pytest.mark.parametrize("iterations", [0, 3])
def test_many_points_in_any_order(iterations: int) -> None:
    """Invariant 11, in k-means: what updates look at depends on the points' values, never on where they stand."""
    points, order = random_points(500), torch.randperm(500, generator=seeded(5))
    assert training_points(6) < 500
    assigned = k_means(points, 6, iterations, seeded())
    assert torch.equal(k_means(points[:, :, order], 6, iterations, seeded()), assigned[:, :, order])


@pytest.mark.parametrize("clusters", [7, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_points_keep_a_cluster_of_their_own(dtype: torch.dtype, clusters: int) -> None:
    """Invariant 1, in k-means: updates of many points miss those, whose centroids then stay where they are."""
    which = torch.zeros(2000, dtype=torch.int64)
    which[torch.randperm(2000, generator=seeded())[:6]] = torch.arange(1, 7)
    assigned = k_means(random_points(7, dtype=dtype)[:, :, which], clusters, 3, seeded())
    assert not (together(assigned) & (which.unsqueeze(-1) != which)).any()


def test_updates_of_a_part_come_close_to_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points = random_points(4000, width=8)
    part = inertia(points, k_means(points, 10, 3, seeded()), 10)
    monkeypatch.setattr(module, "POINTS_PER_CLUSTER", 10**6)
    every = inertia(points, k_means(points, 10, 3, seeded()), 10)
    assert not torch.equal(part, every)
    assert bool((part < 1.05 * every).all())
