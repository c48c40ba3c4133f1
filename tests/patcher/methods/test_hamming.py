"""Clusters by Hamming distance: against an oracle that counts bits, and what must not matter to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clustered_oracle import dense, oracle, self_attention
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import (
    AttentionInputs,
    Clustered,
    ClusteredPlain,
    RowRanges,
    method_from_dict,
    method_to_dict,
)
from hf_sparsify.patcher.methods.hamming import hamming_k_means, hash_codes
from live_storage import TensorSizes
from torch import Tensor

METHOD_LIST = [
    ClusteredPlain(clusters=4, clustering="hamming"),
    Clustered(clusters=4, k=5, clustering="hamming"),
    Clustered(clusters=4, k=5, iterations=0, clustering="hamming", bits=9),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(count: int, bits: int, seed: int = 0) -> Tensor:
    """[2, 3, count, bits] of 1 and -1."""
    return (torch.randint(0, 2, (2, 3, count, bits), generator=seeded(seed)) * 2 - 1).float()


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Codes


def test_a_bit_says_on_which_side_of_a_plane_a_query_lies() -> None:
    query = torch.randn(2, 3, 50, 8, generator=seeded(1))
    codes = hash_codes(query, 12, seeded())
    planes = torch.randn(12, 9, generator=seeded())
    for bit, plane in enumerate(planes):
        sides = sum(query[..., i] * plane[i] for i in range(8)) > plane[8]
        assert torch.equal(codes[..., bit], torch.where(sides, 1.0, -1.0))
    assert 0.2 < float((codes > 0).float().mean()) < 0.8


# Clusters


def oracle_clusters(codes: list[int], bits: int, clusters: int, iterations: int) -> list[int]:
    """The clusters of codes that are whole numbers: exclusive or, counted bits, majorities."""
    if clusters == len(codes):
        return list(range(clusters))
    distinct = sorted(set(codes))
    if len(distinct) > clusters:
        centroids = [distinct[(2 * c + 1) * len(distinct) // (2 * clusters)] for c in range(clusters)]
    else:
        centroids = [distinct[min(c, len(distinct) - 1)] for c in range(clusters)]

    def nearest(code: int) -> int:
        return min(range(clusters), key=lambda c: ((code ^ centroids[c]).bit_count(), c))

    for _ in range(iterations):
        assigned = [nearest(code) for code in codes]
        for c in range(clusters):
            members = [code for code, cluster in zip(codes, assigned, strict=True) if cluster == c]
            if members:
                ones = [sum(code >> bit & 1 for code in members) for bit in range(bits)]
                centroids[c] = sum((2 * count > len(members)) << bit for bit, count in enumerate(ones))
    return [nearest(code) for code in codes]


@pytest.mark.parametrize(
    ("count", "bits", "clusters"), [(60, 63, 7), (60, 5, 7), (60, 3, 20), (25, 63, 24), (12, 8, 12), (40, 1, 3)]
)
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_clusters_are_those_of_counted_bits(count: int, bits: int, clusters: int, iterations: int) -> None:
    """With few bits there are ties and empty clusters."""
    codes = random_codes(count, bits)
    numbers = ((codes > 0).numpy().astype(np.uint64) << np.arange(bits, dtype=np.uint64)).sum(-1)
    found = hamming_k_means(codes, clusters, iterations)
    assert found.dtype == torch.int64
    for b in range(2):
        for h in range(3):
            expected = oracle_clusters([int(number) for number in numbers[b, h]], bits, clusters, iterations)
            assert found[b, h].tolist() == expected


@pytest.mark.parametrize("clusters", [7, 9, 39])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_distinct_codes_never_share_a_cluster(iterations: int, clusters: int) -> None:
    """Invariant 1, of codes: 40 of which 7 are distinct."""
    which = torch.arange(40).remainder(11).clamp(max=6)
    assigned = hamming_k_means(random_codes(7, 20)[:, :, which], clusters, iterations)
    together = assigned.unsqueeze(-1) == assigned.unsqueeze(-2)
    assert torch.equal(together, (which.unsqueeze(-1) == which).expand_as(together))


# The whole method


def attend(method: ClusteredPlain, call: AttentionInputs) -> Tensor:
    return method.attend(call)[0]


@pytest.mark.parametrize("extra", [{}, {"heads": 3, "groups": 1}, {"bias": True}, {"softcap": 1.5}], ids=str)
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_rows_are_the_papers_given_the_clusters(method: ClusteredPlain, extra: dict[str, Any]) -> None:
    """Invariants 1, 2 and 5."""
    call = self_attention(**extra)
    assigned = method.group(call)
    assert int(assigned.max()) < 4
    near(attend(method, call), oracle(call, assigned, method.refined))
    for whole in (method.as_dense(), replace(method, clusters=20)):
        near(attend(whole, call), dense(call))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_clusters_as_unique_queries_is_dense(dtype: torch.dtype) -> None:
    """Invariant 1: 40 queries of which 7 are unique, with codes of their own."""
    call = self_attention(40, dtype=dtype, width=8)
    call = replace(call, query=call.query[:, :, torch.arange(40).remainder(11).clamp(max=6)])
    for clusters in (7, 39):
        found = attend(ClusteredPlain(clusters=clusters, clustering="hamming"), call)
        near(found, dense(call), 1e-5 if dtype == torch.float32 else 1e-10)
    fewer = attend(ClusteredPlain(clusters=3, clustering="hamming"), call)
    assert float((fewer - dense(call)).abs().max()) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_alone_and_in_a_padded_batch_are_the_same(method: ClusteredPlain, side: str) -> None:
    """Invariants 12, 13, 14 and 16: the padding holds what would spoil every sum."""
    call = self_attention(dtype=torch.float32)
    own = slice(5, 20) if side == "left" else slice(0, 15)
    first, last = torch.tensor([[0], [own.start]]), torch.tensor([[20], [own.stop]])
    ranges = RowRanges(first.expand(2, 20), last.expand(2, 20))
    spoiled = {}
    for name in ("query", "key", "value"):
        tensor = torch.full_like(getattr(call, name), torch.nan)
        tensor[0] = getattr(call, name)[0]
        tensor[1, :, own] = getattr(call, name)[1, :, own]
        spoiled[name] = tensor
    found = attend(method, replace(call, visibility=ranges, **spoiled))
    alone = {name: getattr(call, name)[1:, :, own] for name in spoiled}
    visibility = RowRanges.all_keys(15, 15)
    assert torch.equal(found[1:, :, own], attend(method, replace(call, visibility=visibility, **alone)))
    found[1, :, own] = 0
    assert not found[1].any()


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_the_order_of_queries_sequences_and_heads_does_not_matter(method: ClusteredPlain) -> None:
    """Invariant 11."""
    call, order = self_attention(groups=4), torch.randperm(20, generator=seeded(1))
    expected = attend(method, call)
    near(attend(method, replace(call, query=call.query[:, :, order])), expected[:, :, order])
    for dim in (0, 1):
        flipped = {name: getattr(call, name).flip(dim) for name in ("query", "key", "value")}
        near(attend(method, replace(call, **flipped)), expected.flip(dim))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_position_bias_and_the_keys_play_no_part_in_the_clusters(method: ClusteredPlain) -> None:
    """Codes are of queries alone, as in the paper; rows of a cluster still share the mean of their bias."""
    call = self_attention(bias=True)
    assert torch.equal(method.group(call), method.group(replace(call, bias=None, key=call.key.flip(2))))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_touched(method: ClusteredPlain) -> None:
    """Invariant 19."""
    call, state = self_attention(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    first = attend(method, call)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(99)
    assert torch.equal(attend(method, call), first)
    assert not torch.equal(attend(replace(method, seed=1), call), first)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_low_precision_and_autocast(method: ClusteredPlain, dtype: torch.dtype, tolerance: float) -> None:
    """Invariant 20: codes are made in float32 from what half precision holds, so clusters are the same."""
    call = self_attention(dtype=dtype)
    wide = replace(call, **{name: getattr(call, name).float() for name in ("query", "key", "value")})
    assert torch.equal(method.group(call), method.group(wide))
    near(attend(method, call).float(), attend(method, wide), tolerance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend(method, wide), attend(method, wide))


def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    """Invariant 23."""
    sizes = []
    for length in (4096, 8192):
        call = self_attention(length, batch=1, heads=1, groups=1, width=4, dtype=torch.float32)
        with TensorSizes() as seen:
            attend(METHOD_LIST[1], call)
        sizes.append(seen)
    assert 1.9 < sizes[1].largest / sizes[0].largest < 2.1
    assert 1.9 < sizes[1].total / sizes[0].total < 2.1


# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clustering": "lsh"}, r"^clustering must be one of rows, hamming, not 'lsh'"),
        ({"clustering": None}, r"^clustering must be one of rows, hamming, not None"),
        ({"clustering": "hamming", "bits": 0}, r"^bits must be a whole number of at least 1, not 0"),
        ({"clustering": "hamming", "bits": 64}, r"^bits must be at most 63"),
        ({"clustering": "hamming", "bits": 32.0}, r"^bits must be a whole number"),
        ({"bits": 32}, r"^bits are for clustering = hamming, .*: choose it, or leave bits out"),
        ({"bits": 64}, r"^bits must be at most 63"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [ClusteredPlain, Clustered])
def test_what_is_refused(kind: type[ClusteredPlain], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**fields)


def test_descriptions_and_recipe_entries() -> None:
    assert ClusteredPlain(7, clustering="hamming").describe() == "7 hamming clusters"
    method = Clustered(7, min_length=9, k=5, clustering="hamming", bits=32)
    assert method.describe() == "7 hamming clusters of 32 bits, k = 5, dense below 9 tokens"
    assert method_from_dict(method_to_dict(method)) == method
    assert method_from_dict({"method": "clustered"}).clustering == "rows"  # type: ignore[union-attr]
    assert method.as_small(3).clustering == method.as_dense().clustering == "hamming"


def test_counts_are_those_of_a_calculation_by_hand() -> None:
    """Updates look at all queries: 2 sequences, 4 heads, 60 tokens, 2 clusters, 3 updates and the last assignment."""
    counts = ClusteredPlain(clusters=2, clustering="hamming").attend(self_attention(60), count=True)[1]
    assert counts == (8 * 2 * 60, 8 * 3600, 8 * 60 * 2 * 4)
    assert ClusteredPlain(clusters=2).counts_of(8, 60).distances == 8 * 2 * (3 * 40 + 60)
