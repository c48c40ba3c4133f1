"""Attention of given clusters by the native library, against the formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import oracle
from hf_sparsify.patcher.kernels import clusters as kernel
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain
from hf_sparsify.patcher.methods.cluster_rows import attend_clusters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_clusters import METHOD_LIST, call_of, double, given_clusters, near, random_clusters

pytestmark = pytest.mark.skipif(native() is None, reason="the native library is not built, or SPARSIFY_NATIVE is 0")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("threads", [1, 2, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extra", [{}, {"heads": 3, "groups": 1}, {"softcap": 1.5}, {"value_width": 40}], ids=str)
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_output_is_the_formulas(
    method: ClusteredPlain, extra: dict[str, Any], dtype: torch.dtype, threads: int
) -> None:
    call = call_of(37, dtype=dtype, **extra)
    assigned = random_clusters(call, 4)
    out = given_clusters(call, method, assigned, threads)
    assert out.dtype == dtype
    near(out, oracle(call, assigned, method.refined), TOLERANCE[dtype])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    groups, per_group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    width, value_width = (8 * data.draw(st.integers(1, 32)) for _ in range(2))
    tokens = data.draw(st.integers(1, 1200) if width <= 64 else st.integers(1, 100))
    call = call_of(
        tokens,
        batch=data.draw(st.integers(1, 2)),
        heads=groups * per_group,
        groups=groups,
        width=width,
        value_width=value_width,
        softcap=data.draw(st.sampled_from([None, 1.5])),
        seed=data.draw(st.integers(0, 9)),
    )
    clusters = min(data.draw(st.integers(1, 130)), tokens)
    k = data.draw(st.sampled_from([0, 1, 5, 32, 33, 100, 2000]))
    method = Clustered(clusters=clusters, k=k) if k else ClusteredPlain(clusters=clusters)
    assigned = random_clusters(call, clusters)
    out = given_clusters(call, method, assigned, data.draw(st.integers(1, 4)))
    near(out, attend_clusters(double(call), assigned, clusters, min(k, tokens)))


@pytest.mark.parametrize("k", [1, 32, 600])
def test_scores_far_apart_and_in_any_order(k: int) -> None:
    """Rising scores make every key the strongest so far; one far above the rest leaves no weight to those."""
    call = call_of(1100, batch=1, heads=2, groups=1, width=8)
    assigned = random_clusters(call, 3)
    for scale, order in ((30.0, None), (1.0, False), (1.0, True)):
        query = call.query.abs()
        key = call.key if order is None else call.key.sum(-1, keepdim=True).sort(2, descending=order).values / 8
        spread = replace(call, query=query, key=key.expand(-1, -1, -1, 8).contiguous(), scale=scale)
        expected = attend_clusters(double(spread), assigned, 3, k)
        near(given_clusters(spread, Clustered(clusters=3, k=k), assigned), expected, 1e-5 if scale == 1 else 1e-4)


def test_of_equal_keys_any_may_be_refined() -> None:
    call = call_of(600, width=8)
    call = replace(call, key=call.key[:, :, torch.arange(600) % 3], value=call.value[:, :, torch.arange(600) % 3])
    assigned = random_clusters(call, 4)
    near(given_clusters(call, Clustered(clusters=4, k=7), assigned), oracle(call, assigned, 7))


@pytest.mark.parametrize("layout", ["heads first", "tokens first", "columns first", "every other row"])
def test_strides(layout: str) -> None:
    call = call_of(50)
    assigned, expected = random_clusters(call, 4), None
    parts = []
    for tensor in (call.query, call.key, call.value):
        if layout == "heads first":
            tensor = tensor.contiguous()
        elif layout == "columns first":
            tensor = tensor.transpose(2, 3).contiguous().transpose(2, 3)
        elif layout == "every other row":
            tensor = torch.stack([tensor, torch.full_like(tensor, torch.nan)], 3).flatten(2, 3)[:, :, ::2]
        parts.append(tensor)
    query, key, value = parts
    expected = oracle(call, assigned, 5)
    call = replace(call, query=query, key=key, value=value)
    near(given_clusters(call, Clustered(clusters=4, k=5), assigned), expected)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_clusters_that_there_are_not_are_refused(bad: int) -> None:
    call = call_of()
    assigned = random_clusters(call, 4)
    assigned[1, 3, 19] = bad
    with pytest.raises(ValueError, match="of 4"):
        given_clusters(call, Clustered(clusters=4, k=5), assigned)


def test_a_large_output_is_no_different() -> None:
    """Outputs from 32 MiB on ask for large pages."""
    call = call_of(4100, batch=1, heads=8, groups=1, width=8, value_width=256)
    assigned = random_clusters(call, 3)
    out = given_clusters(call, ClusteredPlain(clusters=3), assigned)
    assert out.nbytes > kernel.LARGE
    near(out, attend_clusters(double(call), assigned, 3, 0))
