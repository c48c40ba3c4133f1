"""A bias by distance is the matrix that it stands for, in every method, and makes none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clustered_oracle import self_attention
from hf_sparsify.patcher.methods import (
    AttentionInputs,
    AttentionMethod,
    Clustered,
    ClusteredPlain,
    FullMask,
    TopK,
    TopTheta,
    attend_rows,
)
from hf_sparsify.patcher.methods.distance_bias import DistanceBias, bias_rows
from live_storage import TensorSizes
from tiny_models import LAYOUTS, attention_inputs
from torch import Tensor

# Sequences, heads, queries, keys.
SHAPES = [(1, 3, 7, 7), (2, 1, 5, 9), (1, 3, 1, 9), (2, 3, 9, 4), (1, 2, 1, 1)]
ROWS: list[AttentionMethod | None] = [None, TopK(k=3), TopK(k=3, compensation="sdc+vmc"), TopTheta(k=3)]
CLUSTERS = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bias_of(batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype = torch.float64) -> DistanceBias:
    return DistanceBias(random(batch, heads, queries + keys - 1, seed=1, dtype=dtype), queries)


def matrix(bias: DistanceBias) -> Tensor:
    """[B, H, q, n], each number looked up by itself."""
    distance = torch.arange(bias.keys) - torch.arange(bias.queries).unsqueeze(1)
    return bias.by_distance[..., distance + bias.queries - 1]


def attend(method: AttentionMethod | None, call: AttentionInputs) -> Tensor:
    return (attend_rows(call) if method is None else method.attend(call))[0]


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_that_is_made_of_it_is_the_matrix(shape: tuple[int, int, int, int]) -> None:
    _, heads, queries, keys = shape
    bias = bias_of(*shape)
    whole = matrix(bias)
    assert bias.keys == keys
    assert torch.equal(bias.whole(), whole)
    for start in range(queries):
        for low in range(keys + 1):
            part = bias_rows(bias, start, queries, low, keys)
            assert torch.equal(part, bias_rows(whole, start, queries, low, keys))
            assert torch.equal(bias.rows(0, start + 1, 0, low), whole[:, :, : start + 1, :low])
    columns, rows = random(keys, 4), random(2, 3 if heads == 1 else heads, 5, queries)
    near(bias.times(columns), whole @ columns)
    near(bias.under(rows), rows @ whole)
    picked = torch.randint(keys, (2, rows.shape[1], queries, 2), generator=torch.Generator().manual_seed(2))
    assert torch.equal(bias.at(picked), whole.expand(2, rows.shape[1], -1, -1).gather(-1, picked))


def test_tokens_of_one_sequence_have_its_bias() -> None:
    bias = bias_of(2, 3, 9, 9)
    for index in (0, 1):
        assert torch.equal(bias.between(index, 2, 6).whole(), matrix(bias)[index : index + 1, :, 2:6, 2:6])
    assert torch.equal(bias_of(1, 3, 9, 9).between(1, 0, 9).whole(), matrix(bias_of(1, 3, 9, 9)))


def test_products_of_long_float32_rows_lose_no_digits() -> None:
    """As exact as a product in float64 that is rounded once."""
    length = 1500
    bias = bias_of(1, 2, length, length, torch.float32)
    exact = matrix(bias).double()
    rows, columns = random(1, 2, 3, length, dtype=torch.float32), random(length, 2, dtype=torch.float32)
    near(bias.under(rows), (rows.double() @ exact).float(), 1e-6)
    near(bias.times(columns), (exact @ columns.double()).float(), 1e-6)


def test_gradients_by_distance() -> None:
    by_distance = random(1, 2, 11).requires_grad_()
    picked, columns, rows = torch.randint(6, (1, 2, 6, 3)), random(6, 2), random(1, 2, 3, 6)

    def made(numbers: Tensor) -> tuple[Tensor, ...]:
        bias = DistanceBias(numbers, 6)
        return bias.rows(1, 5, 2, 6), bias.at(picked), bias.times(columns), bias.under(rows)

    assert torch.autograd.gradcheck(made, [by_distance])


@pytest.mark.parametrize("method", ROWS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (4, 9), (1, 9)])
def test_rows_are_those_of_the_matrix(queries: int, keys: int, layout: str, method: AttentionMethod | None) -> None:
    """Padding on both sides, windows, masks of a model's own and queries that go on from a cache."""
    call, bias = attention_inputs(layout, queries=queries, keys=keys, softcap=3.0), bias_of(1, 4, queries, keys)
    out, expected = attend(method, replace(call, bias=bias)), attend(method, replace(call, bias=matrix(bias)))
    near(out, expected)
    assert not torch.allclose(out, attend(method, call))


@pytest.mark.parametrize("method", CLUSTERS, ids=str)
@pytest.mark.parametrize("layout", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 1)])
def test_clusters_are_those_of_the_matrix(shape: tuple[int, int], layout: str, method: AttentionMethod) -> None:
    call, bias = self_attention(), bias_of(*shape, 20, 20)
    valid = torch.ones(2, 20, dtype=torch.bool)
    if layout != "none":
        valid[1, {"right": slice(15, 20), "left": slice(0, 5), "holes": slice(7, 9)}[layout]] = False
        call = replace(call, visibility=FullMask((valid[:, None, :] & valid[:, :, None]).unsqueeze(1)))
    out, expected = attend(method, replace(call, bias=bias)), attend(method, replace(call, bias=matrix(bias)))
    near(out, expected)
    assert not torch.allclose(out, attend(method, call))


@pytest.mark.parametrize("method", [*ROWS, *CLUSTERS], ids=str)
def test_a_thousand_tokens_in_float32(method: AttentionMethod | None) -> None:
    length = 1021
    call, bias = self_attention(length=length, dtype=torch.float32), bias_of(1, 4, length, length, torch.float32)
    out, expected = attend(method, replace(call, bias=bias)), attend(method, replace(call, bias=matrix(bias)))
    # Queries between two clusters may go to either.
    off = ((out - expected).abs().amax(-1) > 1e-4).float().mean()
    assert float(off) <= (0.002 if method in CLUSTERS else 0)


@pytest.mark.parametrize("method", [*ROWS, *CLUSTERS], ids=str)
def test_no_operation_makes_the_matrix(method: AttentionMethod | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_sparsify.patcher.methods.rows.CHUNK_ELEMENTS", 2**16)
    largest = []
    for length in (600, 1200):
        call = self_attention(batch=1, length=length, heads=2, groups=2, dtype=torch.float32)
        call = replace(call, bias=bias_of(1, 2, length, length, torch.float32))
        with TensorSizes() as sizes:
            attend(method, call)
        largest.append(sizes.largest)
    assert largest[1] < 1200 * 1200 / 4
    assert largest[1] < 2.5 * largest[0]


def test_gradients_of_a_trained_bias_are_those_of_its_matrix() -> None:
    gradients = []
    for by_distance in (True, False):
        bias = bias_of(1, 4, 7, 7)
        bias.by_distance.requires_grad_()
        call = replace(attention_inputs("left"), bias=bias if by_distance else matrix(bias))
        attend(TopK(k=3, compensation="sdc+vmc"), call).square().sum().backward()
        assert bias.by_distance.grad is not None
        gradients.append(bias.by_distance.grad)
    near(*gradients)
