"""The clustered methods on whole sequences: when they are dense, what does not matter to them, what they count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clustered_oracle import dense, oracle, self_attention, with_rows_as_output
from hf_sparsify.patcher.methods import (
    AttentionInputs,
    Clustered,
    ClusteredPlain,
    FullMask,
    RowRanges,
)
from hf_sparsify.patcher.methods.clustered import ClusterCounts
from live_storage import TensorSizes
from torch import Tensor

EXTRAS: list[dict[str, Any]] = [{}, {"heads": 3, "groups": 1}, {"bias": True}, {"softcap": 1.5}]
METHOD_LIST = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5), Clustered(clusters=4, k=5, iterations=0)]


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def attend(method: ClusteredPlain, call: AttentionInputs) -> Tensor:
    return method.attend(call)[0]


def counted(method: ClusteredPlain, call: AttentionInputs) -> ClusterCounts:
    counts = method.attend(call, count=True)[1]
    assert counts is not None
    return counts


def padded_by(call: AttentionInputs, *padding: int) -> AttentionInputs:
    """The same with so many keys of padding on the right of each sequence."""
    last = torch.tensor(padding).neg().unsqueeze(1) + call.key.shape[2]
    last = last.expand(-1, call.query.shape[2])
    return replace(call, visibility=RowRanges(torch.zeros_like(last), last))


# Exactness


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [ClusteredPlain(), Clustered(k=3)], ids=str)
def test_as_many_clusters_as_tokens_is_dense(method: ClusteredPlain, dtype: torch.dtype, extra: dict[str, Any]) -> None:
    """Invariants 1 and 4: more clusters than queries are no error."""
    call = self_attention(dtype=dtype, **extra)
    for clusters in (20, 21, 2**40):
        near(attend(replace(method, clusters=clusters), call), dense(call), 1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [{}, {"heads": 3, "groups": 1}, {"softcap": 1.5}], ids=str)
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_as_many_clusters_as_unique_queries_is_dense(
    iterations: int, extra: dict[str, Any], dtype: torch.dtype
) -> None:
    """Invariant 1: 40 queries of which 7 are unique."""
    call = self_attention(40, dtype=dtype, width=8, **extra)
    call = replace(call, query=call.query[:, :, torch.arange(40).remainder(11).clamp(max=6)])
    for method in (ClusteredPlain(iterations=iterations), Clustered(k=3, iterations=iterations)):
        for clusters in (7, 9, 39):
            exact = attend(replace(method, clusters=clusters), call)
            near(exact, dense(call), 1e-5 if dtype == torch.float32 else 1e-10)
        assert float((attend(replace(method, clusters=3), call) - dense(call)).abs().max()) > 1e-3


def test_a_cluster_per_query_tells_apart_queries_that_rounding_cannot() -> None:
    """Invariant 1 in float32: distances of 1e-6 get lost, the queries' own rows do not."""
    call = self_attention(64, width=16, dtype=torch.float32)
    query = 3 * call.query
    query[:, :, 1::2] = query[:, :, ::2] + 1e-3 * call.query[:, :, 1::2]
    call = replace(call, query=query)
    near(attend(ClusteredPlain(clusters=64), call), dense(call), 1e-5)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("clusters", [1, 3, 100])
@pytest.mark.parametrize("k", [20, 10**9])
def test_a_k_of_all_keys_is_dense(k: int, clusters: int, extra: dict[str, Any]) -> None:
    """Invariant 2, without padding; with padding see the tests of padding."""
    call = self_attention(**extra)
    near(attend(Clustered(clusters=clusters, k=k), call), dense(call))
    if clusters < 20:
        assert float((attend(Clustered(clusters=clusters, k=3), call) - dense(call)).abs().max()) > 1e-2


@pytest.mark.parametrize("method", [*METHOD_LIST, ClusteredPlain(clusters=1), Clustered(clusters=1, k=1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_that_are_all_the_same_are_dense(method: ClusteredPlain, dtype: torch.dtype) -> None:
    """Invariants 3 and 4: a single distinct query leaves clusters empty."""
    call = self_attention(dtype=dtype)
    call = replace(call, query=call.query[:, :, :1].expand(-1, -1, 20, -1))
    near(attend(method, call), dense(call), 1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_constant_queries_and_keys_give_the_mean_value(method: ClusteredPlain, value: float) -> None:
    """Invariant 4: keys without any spread have no covariance to measure by."""
    call = self_attention(dtype=torch.float32)
    call = replace(call, query=torch.full_like(call.query, value), key=torch.full_like(call.key, value))
    expected = call.value.mean(2, keepdim=True).repeat_interleave(2, 1).expand(-1, -1, 20, -1)
    near(attend(method, call), expected, 1e-5)


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_single_token_gets_its_own_value(method: ClusteredPlain) -> None:
    call = self_attention(1)
    assert torch.equal(attend(method, call), call.value.repeat_interleave(2, 1))
    assert torch.equal(attend(method, replace(call, visibility=RowRanges.causal(1, 1))), attend(method, call))


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_one_cluster_is_the_row_of_the_mean_query(extra: dict[str, Any]) -> None:
    """Invariants 5 and 25: with one cluster there is no choice in the assignment."""
    call = self_attention(**extra)
    none = torch.zeros(call.query.shape[:3], dtype=torch.int64)
    near(attend(ClusteredPlain(clusters=1), call), oracle(call, none, 0))
    near(attend(Clustered(clusters=1, k=5), call), oracle(call, none, 5))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_rows_of_the_whole_method_are_weights(method: ClusteredPlain) -> None:
    """Invariants 6 and 7."""
    call = with_rows_as_output(self_attention(bias=True))
    rows = attend(method, call)
    near(rows.sum(-1), torch.ones(2, 4, 20, dtype=torch.float64))
    assert float(rows.min()) >= 0
    plain = attend(ClusteredPlain(clusters=4, iterations=method.iterations), call)
    distance, before = (rows - dense(call)).abs().sum(-1), (plain - dense(call)).abs().sum(-1)
    assert bool((distance <= before + 1e-10).all())


# What does not matter


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_shift_of_every_key_changes_nothing(method: ClusteredPlain) -> None:
    """Invariant 9: neither the clusters nor the rows."""
    call = self_attention(bias=True)
    near(attend(method, replace(call, key=call.key + torch.tensor([3.0, -1.0, 2.0]))), attend(method, call))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_the_order_of_keys_does_not_matter(method: ClusteredPlain) -> None:
    """Invariant 10. Not with a position bias, whose rows random directions describe, one number for each key."""
    call, order = self_attention(), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    permuted = replace(call, key=call.key[:, :, order], value=call.value[:, :, order])
    near(attend(method, permuted), attend(method, call))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_the_order_of_queries_sequences_and_heads_does_not_matter(method: ClusteredPlain) -> None:
    """Invariant 11: every order gives the same rows in that order."""
    call, order = self_attention(groups=4, bias=True), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert call.bias is not None
    expected = attend(method, call)
    queries = replace(call, query=call.query[:, :, order], bias=call.bias[:, :, order])
    near(attend(method, queries), expected[:, :, order])
    sequences = replace(call, query=call.query.flip(0), key=call.key.flip(0), value=call.value.flip(0))
    near(attend(method, sequences), expected.flip(0))
    heads = {name: getattr(call, name).flip(1) for name in ("query", "key", "value", "bias")}
    near(attend(method, replace(call, **heads)), expected.flip(1))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_touched(method: ClusteredPlain) -> None:
    """Invariant 19: the generators of torch and numpy are neither read nor moved on."""
    call, torch_state = padded_by(self_attention(bias=True), 0, 5), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    first = attend(method, call)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(attend(method, call), first)
    assert not torch.equal(attend(replace(method, seed=1), call), first)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_low_precision_inputs_stay_close_to_float64(
    method: ClusteredPlain, dtype: torch.dtype, tolerance: float
) -> None:
    """Invariant 20: clusters are found in float32, and so are the rows. Queries stand in 4 groups, hard to mistake."""
    call = self_attention(dtype=dtype)
    call = replace(call, query=call.query[:, :, torch.arange(20) % 4] * 2 + call.query * 0.1)
    out = attend(method, call)
    assert out.dtype == dtype
    tensors = {name: getattr(call, name).double() for name in ("query", "key", "value")}
    expected = attend(method, replace(call, **tensors))
    assert expected.dtype == torch.float64
    near(out.double(), expected, tolerance)


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_autocast_does_not_reach_it(method: ClusteredPlain) -> None:
    """Invariant 20: in half precision the covariance of 30 keys of 64 numbers is none any more."""
    call = self_attention(30, width=64, dtype=torch.float32)
    expected = attend(method, call)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(method, call), expected)


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length(method: ClusteredPlain, padded: bool) -> None:
    """Invariant 23: twice the length is twice the room, and far less than one row of scores per query."""
    sizes = []
    for length in (4096, 8192):
        call = self_attention(length, batch=1, heads=1, groups=1, width=4, dtype=torch.float32)
        with TensorSizes() as seen:
            attend(method, padded_by(call, 96) if padded else call)
        assert seen.largest < length * length / 20
        sizes.append(seen)
    assert 1.9 < sizes[1].largest / sizes[0].largest < 2.1
    assert 1.9 < sizes[1].total / sizes[0].total < 2.1


# Settings and counts


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_shorter_sequences_than_min_length_stay_dense(method: ClusteredPlain) -> None:
    """Invariant 24: each sequence by its own length, without padding."""
    call = padded_by(self_attention(bias=True), 0, 5)
    clustered = attend(method, call)
    assert torch.equal(attend(replace(method, min_length=15), call), clustered)
    part = attend(replace(method, min_length=16), call)
    assert torch.equal(part[0], clustered[0])
    near(part[1, :, :15], dense(call)[1, :, :15])
    assert not part[1, :, 15:].any()
    near(attend(replace(method, min_length=21), self_attention()), dense(self_attention()))
    assert counted(replace(method, min_length=21), call) == (4 * (400 + 225), 4 * (400 + 225), 0)


def test_counts_are_those_of_a_calculation_by_hand() -> None:
    """2 sequences, 4 heads, 20 tokens; 3 k-means updates and the assignment before them."""
    call = self_attention()
    assert counted(Clustered(clusters=4, k=5), call) == (8 * (4 * 20 + 20 * 5), 8 * 400, 8 * 20 * 4 * 4)
    assert counted(ClusteredPlain(clusters=4, iterations=0), call) == (8 * 4 * 20, 8 * 400, 8 * 20 * 4)
    assert counted(Clustered(clusters=4, k=99), call) == (8 * (4 * 20 + 20 * 20), 8 * 400, 8 * 20 * 4 * 4)
    # Where every query is its own cluster nothing is measured.
    assert counted(ClusteredPlain(clusters=99), call) == (8 * 400, 8 * 400, 0)
    padded = counted(Clustered(clusters=4, k=5), padded_by(call, 0, 18))
    assert padded == (4 * (4 * 20 + 20 * 5) + 4 * (2 * 2 + 2 * 2), 4 * (400 + 4), 4 * 20 * 4 * 4)
    assert counted(Clustered(clusters=4, k=5), padded_by(call, 20, 20)) == (0, 0, 0)
    assert Clustered().attend(call)[1] is None
    assert Clustered().attend(padded_by(call, 0, 5))[1] is None


def test_as_dense_and_as_small() -> None:
    call = padded_by(self_attention(bias=True), 0, 5)
    seen = FullMask(torch.ones(2, 1, 20, 20, dtype=torch.bool).index_fill(3, torch.arange(15, 20), False))
    for method in (ClusteredPlain(2, 1, 7, 3), Clustered(2, 1, 7, 3, k=2)):
        whole, small = method.as_dense(), method.as_small(6)
        assert type(whole) is type(small) is type(method)
        near(attend(whole, call)[0], dense(call)[0])
        near(attend(whole, call)[1, :, :15], dense(call)[1, :, :15])
        near(attend(whole, replace(call, visibility=seen))[:, :, :15], dense(replace(call, visibility=seen))[:, :, :15])
        assert (whole.iterations, whole.min_length, whole.seed) == (1, 0, 3)
        assert small == replace(method, min_length=0)
    assert ClusteredPlain().as_small(6) == ClusteredPlain(clusters=6)
    assert Clustered().as_small(6) == Clustered(clusters=6, k=6)
    assert Clustered(k=3).as_small(6) == Clustered(clusters=6, k=3)
