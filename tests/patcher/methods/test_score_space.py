"""The points that clustered attention groups: their distances have to be those of score rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import self_attention
from hf_sparsify.patcher.methods import AttentionInputs
from hf_sparsify.patcher.methods.clustered import BIAS_DIRECTIONS, score_space
from torch import Tensor


def points(call: AttentionInputs, seed: int = 0) -> Tensor:
    return score_space(call, torch.Generator().manual_seed(seed))


def squared_distances(rows: Tensor) -> Tensor:
    return (rows.unsqueeze(-2) - rows.unsqueeze(-3)).square().sum(-1)


def content_rows(call: AttentionInputs) -> Tensor:
    """q K^T, scaled, in float64."""
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    return call.query.double() @ key.transpose(2, 3) * call.scale


def per_key(rows: Tensor) -> Tensor:
    """Squared distances of centred rows, per key: what softmax can see of them."""
    return squared_distances(rows - rows.mean(-1, keepdim=True)) / rows.shape[-1]


@pytest.mark.parametrize("extra", [{}, {"heads": 3, "groups": 1}, {"heads": 3, "groups": 3}, {"width": 40}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-4), (torch.float32, 1e-3)])
def test_distances_are_those_of_centred_score_rows(dtype: torch.dtype, tolerance: float, extra: dict[str, Any]) -> None:
    """Also for heads that are wider than the sequence is long."""
    call = self_attention(dtype=dtype, **extra)
    found = points(replace(call, key=call.key + 2))
    assert found.dtype == dtype
    expected = per_key(content_rows(call))
    torch.testing.assert_close(squared_distances(found).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias_shape", [(2, 4), (1, 4), (2, 1), (1, 1)])
def test_a_bias_adds_the_distances_of_its_rows_in_the_mean_over_seeds(bias_shape: tuple[int, int]) -> None:
    call = self_attention()
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(*bias_shape, 20, 20, generator=generator, dtype=torch.float64)
    # A shift of a whole row is nothing to softmax.
    call = replace(call, bias=bias + 50 * torch.randn(*bias_shape, 20, 1, generator=generator, dtype=torch.float64))
    found = torch.stack([squared_distances(points(call, seed)) for seed in range(200)])
    expected = per_key(content_rows(call)) + per_key(bias)
    torch.testing.assert_close(found.mean(0), expected, rtol=0.1, atol=1e-3)
    # One draw is off by no more than a sum of so many squares is.
    relative = (found - found.mean(0)).std(0) / per_key(bias).expand_as(expected).clamp(min=1e-3)
    assert float(relative.max()) < 2 * (2 / BIAS_DIRECTIONS) ** 0.5


def test_the_points_do_not_depend_on_the_rest_of_the_batch() -> None:
    """Invariant 13, in the points: the random directions are the same for every sequence and head."""
    call = self_attention(bias=True)
    one = replace(call, query=call.query[1:], key=call.key[1:], value=call.value[1:])
    torch.testing.assert_close(points(one), points(call)[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("length", [5, 60])
def test_wide_heads_whose_keys_vary_along_one_direction(length: int, noise: float) -> None:
    """In float32 their covariance has to stay one that can be factored."""
    for seed in range(5):
        call = self_attention(length, batch=1, heads=1, groups=1, width=256, seed=seed, dtype=torch.float32)
        key = 30 * call.key[..., :1] * call.key[:, :, :1] + noise * call.key
        call = replace(call, key=key, scale=1 / 16)
        expected = per_key(content_rows(call))
        error = (squared_distances(points(call)).double() - expected).abs().max()
        assert float(error) < 1e-2 * float(expected.max())


def test_no_gradient_passes_through_the_choice_of_clusters() -> None:
    """Invariant 21: the assignment is a constant."""
    call = self_attention(bias=True)
    call.query.requires_grad_()
    assert not points(call).requires_grad
