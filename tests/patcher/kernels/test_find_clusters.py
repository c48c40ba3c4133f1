"""k-means by the native library, against its definition in torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain
from hf_sparsify.patcher.methods.clustered import score_space
from hf_sparsify.patcher.methods.k_means import cluster_means, training_points
from native_clusters import METHOD_LIST, attend, call_of, clustered, double, near
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native library is not built, or SPARSIFY_NATIVE is 0")


def points_of(call: AttentionInputs) -> Tensor:
    return score_space(double(call), torch.Generator())


def means_of(call: AttentionInputs, points: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Means of clusters; a cluster without points is nowhere near."""
    return cluster_means(points, assigned, points.new_full((*points.shape[:2], clusters, points.shape[3]), 1e6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "clusters", "width"), [(60, 5, 8), (300, 40, 64), (900, 50, 24), (130, 129, 256)])
def test_every_point_is_nearest_to_its_centroid(tokens: int, clusters: int, width: int, dtype: torch.dtype) -> None:
    """After one update the centroids are the means of the clusters before it, of all points where those are few."""
    call = call_of(tokens, width=width, dtype=dtype)
    points = points_of(call)
    assert tokens <= training_points(clusters)
    method = ClusteredPlain(clusters=clusters, iterations=3)
    before, after = clustered(call, replace(method, iterations=2)), clustered(call, method)
    means = means_of(call, points, before, clusters)
    # A cluster that became empty kept a centroid that is not known here.
    distances = torch.cdist(points, means).square()
    own = distances.gather(-1, after.unsqueeze(-1)).squeeze(-1)
    known = own < 1e6
    assert float(known.double().mean()) > 0.95
    assert bool((own <= distances.amin(-1) + 1e-5 * points.square().sum(-1).max())[known].all())


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("tokens", "clusters"), [(50, 7), (400, 6), (33, 32)])
def test_clusters_are_those_of_the_definition(tokens: int, clusters: int, iterations: int) -> None:
    """Also where updates look at a part of the points. Queries stand in groups, hard to mistake."""
    call = call_of(tokens, groups=4)
    centres = torch.randn(2, 4, clusters, 16, generator=torch.Generator().manual_seed(5))
    query = 6 * centres[:, :, torch.arange(tokens) % clusters] + 0.2 * call.query
    call = replace(call, query=query)
    method = ClusteredPlain(clusters=clusters, iterations=iterations)
    near(attend(method, call), method.attend(double(call))[0])


def test_most_clusters_of_random_points_are_those_of_the_definition() -> None:
    """Rounding moves single points, and their clusters' means with them."""
    call = call_of(2500, batch=1, heads=2, groups=1, width=64)
    method = Clustered(clusters=100)
    difference = (attend(method, call) - method.attend(double(call))[0]).abs().amax(-1)
    assert float((difference < 1e-5).double().mean()) > 0.8
    assert float(difference.max()) < 0.5


def test_inertia_is_that_of_the_definition() -> None:
    call = call_of(3000, batch=1, width=32)
    points = points_of(call)
    for clusters in (10, 100):
        method = ClusteredPlain(clusters=clusters)
        assigned = clustered(call, method)
        means = means_of(call, points, assigned, clusters)
        own = means.gather(2, assigned.unsqueeze(-1).expand_as(points))
        total = (points - points.mean(2, keepdim=True)).square().sum()
        found = float((points - own).square().sum() / total)
        assert found < (0.95 if clusters == 10 else 0.8)


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_shift_of_every_key_and_of_every_query_changes_no_cluster(method: ClusteredPlain) -> None:
    call = call_of(200)
    shifted = replace(call, query=call.query + 8, key=call.key + 8)
    assert float((clustered(call, method) == clustered(shifted, method)).double().mean()) > 0.98
