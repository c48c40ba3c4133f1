"""Attention by clusters, given the cluster of every query: against the paper's formulas, and what they guarantee."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import (
    dense,
    oracle,
    oracle_rows,
    random_clusters,
    self_attention,
    with_rows_as_output,
)
from hf_sparsify.patcher.methods import AttentionInputs, cluster_rows
from hf_sparsify.patcher.methods.cluster_rows import _blocks, attend_clusters
from live_storage import TensorSizes
from torch import Tensor

EXTRAS: list[dict[str, Any]] = [
    {},
    {"heads": 3, "groups": 3},
    {"heads": 4, "groups": 1},
    {"bias": True},
    {"softcap": 1.5},
    {"bias": True, "softcap": 1.5, "groups": 4},
]
REFINED = (0, 1, 4, 20)


def rows(call: AttentionInputs, assigned: Tensor, clusters: int, refined: int) -> Tensor:
    """The attention rows [B, H, N, N] of the implementation."""
    return attend_clusters(with_rows_as_output(call), assigned, clusters, refined)


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def divergence(expected: Tensor, actual: Tensor) -> Tensor:
    """KL(expected || actual) per row."""
    return (expected * (expected / actual).log()).sum(-1)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("refined", REFINED)
@pytest.mark.parametrize("clusters", [1, 3, 20])
def test_equals_the_formulas_of_the_paper(clusters: int, refined: int, extra: dict[str, Any]) -> None:
    """Invariants 5 and 25: an independent O(N^2) computation from the same assignment and keys, in float64."""
    call = self_attention(**extra)
    assigned = random_clusters(call, clusters)
    near(attend_clusters(call, assigned, clusters, refined), oracle(call, assigned, refined))
    near(rows(call, assigned, clusters, refined), oracle_rows(call, assigned, refined))
    if clusters == 3 and refined < 20:
        assert float((attend_clusters(call, assigned, clusters, refined) - dense(call)).abs().max()) > 1e-2


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("clusters", [1, 2, 7])
def test_all_keys_refined_is_dense(clusters: int, extra: dict[str, Any]) -> None:
    """Invariant 2, for any assignment."""
    call = self_attention(**extra)
    near(attend_clusters(call, random_clusters(call, clusters), clusters, 20), dense(call))


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("refined", REFINED)
def test_a_cluster_per_query_is_dense(refined: int, extra: dict[str, Any]) -> None:
    """Invariant 1, given the assignment."""
    call = self_attention(**extra)
    near(attend_clusters(call, torch.arange(20).expand(2, call.query.shape[1], -1), 20, refined), dense(call))


@pytest.mark.parametrize("refined", REFINED)
def test_empty_clusters_are_nothing(refined: int) -> None:
    """Invariant 4: most of 50 clusters are empty, with more clusters than queries."""
    call = self_attention(bias=True)
    few = random_clusters(call, 3)
    expected = attend_clusters(call, few, 3, refined)
    assert torch.isfinite(expected).all()
    near(attend_clusters(call, few * 11 + 2, 50, refined), expected)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("refined", REFINED)
def test_rows_are_weights(refined: int, extra: dict[str, Any]) -> None:
    """Invariant 6: rows sum to 1 and are not negative; the output is linear in V and within its hull."""
    call = self_attention(**extra)
    assigned = random_clusters(call, 3)
    found = rows(call, assigned, 3, refined)
    near(found.sum(-1), torch.ones(found.shape[:3], dtype=torch.float64))
    assert float(found.min()) >= 0
    out = attend_clusters(call, assigned, 3, refined)
    value = call.value.repeat_interleave(call.query.shape[1] // call.value.shape[1], 1)
    assert bool((out <= value.amax(2, keepdim=True) + 1e-9).all())
    assert bool((out >= value.amin(2, keepdim=True) - 1e-9).all())
    other = call.value.flip(2).square()
    mixed = attend_clusters(replace(call, value=3 * call.value - 2 * other), assigned, 3, refined)
    near(mixed, 3 * out - 2 * attend_clusters(replace(call, value=other), assigned, 3, refined))
    near(attend_clusters(replace(call, value=torch.ones_like(other)), assigned, 3, refined), torch.ones_like(out))


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_refined_rows_are_never_further_from_dense_than_plain_ones(seed: int, extra: dict[str, Any]) -> None:
    """Invariant 7: L1 distance and KL divergence of every single row, for the same assignment."""
    call = with_rows_as_output(self_attention(seed=seed, **extra))
    assigned = random_clusters(call, 3, seed)
    exact, plain = dense(call), attend_clusters(call, assigned, 3, 0)
    for refined in (1, 2, 5, 10, 19):
        found = attend_clusters(call, assigned, 3, refined)
        distance, before = (found - exact).abs().sum(-1), (plain - exact).abs().sum(-1)
        assert bool((distance <= before + 1e-10).all())
        assert bool((divergence(exact, found) <= divergence(exact, plain) + 1e-10).all())
        # One key of its own mass is the plain row again.
        assert bool((distance < before - 1e-3).any()) == (refined > 1)


def test_more_refined_keys_are_better() -> None:
    """Invariant 8: the L1 distance falls with k in the mean.

    It rises for no single row either: the keys of a smaller k are among those of a larger one, so that both rows have
    the same mass there, and a row in dense proportions is the nearest of that mass.
    """
    call = with_rows_as_output(self_attention(batch=8))
    assigned, exact = random_clusters(call, 3), dense(call)
    distances = torch.stack([(attend_clusters(call, assigned, 3, k) - exact).abs().sum(-1) for k in range(1, 21)])
    means = distances.mean((1, 2, 3))
    assert bool((means[1:] < means[:-1]).all())
    assert float(means[-1]) < 1e-10
    assert bool((distances[1:] <= distances[:-1] + 1e-10).all())


@pytest.mark.parametrize("extra", EXTRAS[:4], ids=str)
@pytest.mark.parametrize("refined", REFINED)
def test_the_same_shift_of_every_key_changes_nothing(refined: int, extra: dict[str, Any]) -> None:
    """Invariant 9, given the assignment; a soft cap is no invariant of it."""
    call = self_attention(**extra)
    assigned = random_clusters(call, 3)
    shifted = replace(call, key=call.key + torch.tensor([3.0, -1.0, 2.0]))
    near(attend_clusters(shifted, assigned, 3, refined), attend_clusters(call, assigned, 3, refined))


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("refined", REFINED)
def test_the_order_of_keys_and_queries_does_not_matter(refined: int, extra: dict[str, Any]) -> None:
    """Invariants 10 and 11, given the assignment: keys with their values, queries with their clusters."""
    call = self_attention(**extra)
    assigned = random_clusters(call, 3)
    expected = attend_clusters(call, assigned, 3, refined)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    bias = call.bias
    keys = replace(
        call, key=call.key[:, :, order], value=call.value[:, :, order], bias=None if bias is None else bias[..., order]
    )
    near(attend_clusters(keys, assigned, 3, refined), expected)
    queries = replace(call, query=call.query[:, :, order], bias=None if bias is None else bias[:, :, order])
    near(attend_clusters(queries, assigned[..., order], 3, refined), expected[:, :, order])
    near(attend_clusters(call, (assigned + 1) % 3, 3, refined), expected)


@pytest.mark.parametrize("refined", [0, 5])
def test_a_bias_of_every_shape(refined: int) -> None:
    """Invariant 5: a bias may be shared by sequences and by heads."""
    call = self_attention()
    bias = self_attention(bias=True, heads=8).bias
    assert bias is not None
    bias, assigned = bias.view(2, 4, 20, 20), random_clusters(call, 3)
    for part in (bias, bias[:1], bias[:, :1], bias[:1, :1]):
        biased = replace(call, bias=part)
        near(attend_clusters(biased, assigned, 3, refined), oracle(biased, assigned, refined))


# Blocks


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_the_size_of_a_block_does_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = self_attention(bias=True)
    assigned = random_clusters(call, 7)
    monkeypatch.setattr(cluster_rows, "SMALLEST_BLOCK", size)
    near(attend_clusters(call, assigned, 7, 5), oracle(call, assigned, 5))


@pytest.mark.parametrize(("length", "clusters", "size"), [(20, 3, 7), (20, 3, 1), (33, 8, 16), (16, 16, 4), (5, 1, 5)])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_block_holds_queries_of_one_cluster(uneven: bool, length: int, clusters: int, size: int) -> None:
    assigned = torch.randint(0, clusters, (2, 3, length), generator=torch.Generator().manual_seed(0))
    if uneven:
        assigned = torch.zeros_like(assigned)
        assigned[..., -1] = clusters - 1
    slots, cluster_of_block = _blocks(assigned, clusters, size)
    assert cluster_of_block.shape == (2, 3, length // size + clusters)
    assert 0 <= int(slots.min()) <= int(slots.max()) < cluster_of_block.shape[-1] * size
    assert all(len(set(places)) == length for places in slots.flatten(0, 1).tolist())
    assert torch.equal(cluster_of_block.gather(-1, slots // size), assigned)


def test_one_overfull_cluster_takes_more_blocks_and_no_more_room() -> None:
    """All queries but one share a cluster: laying 32 clusters out at the largest size would take 32 x 511 x k."""
    call = self_attention(512, batch=1, heads=2, groups=1)
    assigned = torch.zeros(1, 2, 512, dtype=torch.int64)
    assigned[..., 100] = 31
    with TensorSizes() as sizes:
        out = attend_clusters(call, assigned, 32, 16)
    near(out, oracle(call, assigned, 16))
    with TensorSizes() as even:
        attend_clusters(call, torch.arange(512).expand(1, 2, -1) % 32, 32, 16)
    assert sizes.largest == even.largest <= 2 * 2 * 512 * 32
    assert sizes.total <= 1.01 * even.total


# Numbers


@pytest.mark.parametrize("refined", [0, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
def test_low_precision_inputs_stay_close_to_float64(dtype: torch.dtype, tolerance: float, refined: int) -> None:
    """Invariant 20, given the assignment: the means and the softmax do not lose half precision's digits."""
    call = self_attention(dtype=dtype, bias=True)
    assigned = random_clusters(call, 3)
    out = attend_clusters(call, assigned, 3, refined)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), oracle(call, assigned, refined), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("refined", [0, 5])
def test_scores_that_overflow_half_precision_do_not_overflow(refined: int) -> None:
    """Invariant 20: queries of 300 and keys of 300 in float16."""
    call = self_attention(dtype=torch.float16)
    call = replace(call, query=call.query.clamp(-1, 1) * 300, key=call.key.clamp(-1, 1) * 300)
    assigned = random_clusters(call, 3)
    out = attend_clusters(call, assigned, 3, refined)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.double(), oracle(call, assigned, refined), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("extra", [{}, {"bias": True, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("refined", [0, 2])
def test_gradients_are_right(refined: int, extra: dict[str, Any]) -> None:
    """Invariant 21: gradcheck in float64; assignment and keys stay as they are under its small steps."""
    call = self_attention(5, batch=1, heads=2, groups=1, **extra)
    names = ("query", "key", "value", "bias") if call.bias is not None else ("query", "key", "value")
    leaves = [getattr(call, name).requires_grad_() for name in names]
    assigned = torch.tensor([[[0, 0, 2, 2, 0], [1, 2, 1, 1, 1]]])

    def attend(*parts: Tensor) -> Tensor:
        return attend_clusters(replace(call, **dict(zip(names, parts, strict=True))), assigned, 3, refined)

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize(("refined", "bias"), [(0, False), (5, True)])
def test_compiles_as_one_graph(refined: int, bias: bool) -> None:
    """Invariant 22."""
    call = self_attention(bias=bias, softcap=3.0)
    assigned = random_clusters(call, 3)
    compiled = torch.compile(attend_clusters, backend="eager", fullgraph=True)
    near(compiled(call, assigned, 3, refined), attend_clusters(call, assigned, 3, refined), 1e-12)


@pytest.mark.parametrize("refined", [0, 2])
def test_dropout_keeps_the_mean(refined: int) -> None:
    call = self_attention(6, batch=1, heads=1, groups=1)
    assigned = torch.tensor([[[0, 1, 0, 1, 1, 0]]])
    expected = attend_clusters(call, assigned, 2, refined)[0]
    tensors = {name: getattr(call, name).expand(4000, -1, -1, -1) for name in ("query", "key", "value")}
    torch.manual_seed(0)
    dropped = attend_clusters(replace(call, **tensors, dropout=0.5), assigned.expand(4000, -1, -1), 2, refined)
    assert float((dropped[0] - expected).abs().max()) > 0.1
    torch.testing.assert_close(dropped.mean(0), expected, rtol=0, atol=0.1)
