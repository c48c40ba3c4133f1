"""Attention of given clusters, and the clusters themselves, by Triton: against the formulas, and against k-means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from clustered_oracle import oracle
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain
from hf_sparsify.patcher.methods.cluster_rows import attend_clusters
from hf_sparsify.patcher.methods.clustered import score_space
from hf_sparsify.patcher.methods.k_means import cluster_means, training_points
from native_clusters import call_of, double, near, random_clusters
from triton_clusters import MARKS, TOLERANCE, attend, clustered, given_clusters
from triton_interpreter import mend_products

pytestmark = MARKS


@pytest.fixture(autouse=True)
def right_products(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_products(monkeypatch)


@pytest.mark.parametrize(
    ("method", "dtype", "fields"),
    [
        (Clustered(clusters=4, k=5), torch.float32, {"heads": 4, "groups": 2, "softcap": 1.5}),
        (Clustered(clusters=4, k=35), torch.float32, {"value_width": 40}),
        (ClusteredPlain(clusters=4), torch.float32, {"width": 40, "softcap": 1.5}),
        (Clustered(clusters=35, k=3), torch.float16, {"width": 64}),
        (Clustered(clusters=4, k=5), torch.bfloat16, {"heads": 3, "width": 128}),
        (ClusteredPlain(clusters=4), torch.bfloat16, {"batch": 2}),
    ],
    ids=str,
)
def test_output_is_the_formulas(method: ClusteredPlain, dtype: torch.dtype, fields: dict[str, Any]) -> None:
    """Some clusters are empty where there are as many as tokens."""
    call = call_of(37, dtype=dtype, **{"batch": 1, "heads": 2, "groups": 1, **fields})
    assigned = random_clusters(call, method.clusters)
    out = given_clusters(call, method, assigned)
    assert out.dtype == dtype
    near(out, oracle(call, assigned, method.refined), TOLERANCE[dtype])


@pytest.mark.parametrize("k", [0, 2, 33])
def test_many_tiles_of_queries_and_keys(k: int) -> None:
    call = call_of(300, batch=1, heads=1, groups=1)
    assigned = random_clusters(call, 3)
    method = Clustered(clusters=3, k=k) if k else ClusteredPlain(clusters=3)
    near(given_clusters(call, method, assigned), attend_clusters(double(call), assigned, 3, k))


@pytest.mark.parametrize("order", [None, True, False])
def test_scores_far_apart_and_in_any_order(order: bool | None) -> None:
    """One score far above the rest leaves no weight to those; rising scores make every key the highest so far."""
    call = call_of(130, batch=1, heads=1, groups=1)
    key = call.key if order is None else call.key.sum(-1, keepdim=True).sort(2, descending=order).values / 8
    query, key = call.query.abs(), key.expand(-1, -1, -1, 16).contiguous()
    call = replace(call, query=query, key=key, scale=30.0 if order is None else 1.0)
    assigned = random_clusters(call, 3)
    expected = attend_clusters(double(call), assigned, 3, 5)
    near(given_clusters(call, Clustered(clusters=3, k=5), assigned), expected, 1e-4)


def test_of_equal_keys_any_may_be_refined() -> None:
    call = call_of(60, batch=1, heads=2, groups=1)
    call = replace(call, key=call.key[:, :, torch.arange(60) % 3], value=call.value[:, :, torch.arange(60) % 3])
    assigned = random_clusters(call, 4)
    near(given_clusters(call, Clustered(clusters=4, k=7), assigned), oracle(call, assigned, 7))


@pytest.mark.parametrize("layout", ["heads first", "columns first", "every other row"])
def test_strides(layout: str) -> None:
    call = call_of(40, batch=1, heads=2, groups=1)

    def laid_out(tensor: torch.Tensor) -> torch.Tensor:
        if layout == "heads first":
            return tensor.contiguous()
        if layout == "columns first":
            return tensor.transpose(2, 3).contiguous().transpose(2, 3)
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], 3).flatten(2, 3)[:, :, ::2]

    query, key, value = (laid_out(tensor) for tensor in (call.query, call.key, call.value))
    method = Clustered(clusters=4, k=5)
    near(attend(method, replace(call, query=query, key=key, value=value)), attend(method, call))


@pytest.mark.parametrize(
    ("tokens", "clusters", "width", "dtype"),
    [(150, 35, 64, torch.float32), (100, 5, 40, torch.bfloat16), (60, 33, 256, torch.float16)],
)
def test_every_point_is_nearest_to_its_centroid(tokens: int, clusters: int, width: int, dtype: torch.dtype) -> None:
    """After one update the centroids are the means of the clusters before it, of all points where those are few."""
    call = call_of(tokens, batch=1, heads=2, groups=1, width=width, dtype=dtype)
    points = score_space(double(call), torch.Generator())
    assert tokens <= training_points(clusters)
    method = ClusteredPlain(clusters=clusters, iterations=2)
    before, after = clustered(call, replace(method, iterations=1)), clustered(call, method)
    # A cluster that became empty kept a centroid that is not known here: it is nowhere near.
    means = cluster_means(points, before, points.new_full((*points.shape[:2], clusters, width), 1e6))
    distances = torch.cdist(points, means).square()
    own = distances.gather(-1, after.unsqueeze(-1)).squeeze(-1)
    known = own < 1e6
    assert float(known.double().mean()) > 0.95
    assert bool((own <= distances.amin(-1) + 1e-5 * points.square().sum(-1).max())[known].all())


def test_a_shift_of_every_key_and_of_every_query_changes_no_cluster() -> None:
    call, method = call_of(150, batch=1, heads=2, groups=1), ClusteredPlain(clusters=4)
    shifted = replace(call, query=call.query + 8, key=call.key + 8)
    assert float((clustered(call, method) == clustered(shifted, method)).double().mean()) > 0.98
