"""Top-k feed-forward against sorting in Python, and the gathered product against the masked one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import METHODS, TopKFeedForward, method_from_dict, method_to_dict
from hf_sparsify.patcher.methods.top_k_feed_forward import keep_largest, largest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

LEVELS = [-2.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 2.0]
# Largest error of a product of about unit size: low precision rounds once per kept activation.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_by_sorting(token: list[float], k: int) -> set[int]:
    """The k largest magnitudes of a token, the earliest among equals."""
    return {index for index, _ in sorted(enumerate(token), key=lambda item: (-abs(item[1]), item[0]))[:k]}


def masked_by_sorting(hidden: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(hidden)
    for token in range(len(hidden)):
        for index in kept_by_sorting(hidden[token].tolist(), k):
            out[token, index] = hidden[token, index]
    return out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from(LEVELS), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_exactly_k_under_ties_the_earliest_first(tokens: list[list[float]], k: int) -> None:
    hidden = torch.tensor(tokens)
    expected = torch.tensor([[index in kept_by_sorting(token, k) for index in range(7)] for token in tokens])
    assert torch.equal(keep_largest(hidden, min(k, 7)), expected)
    assert torch.equal(TopKFeedForward(k=k).mask(hidden), masked_by_sorting(hidden, k))
    # Which of the zeros are read makes no difference to a sum.
    read = torch.zeros_like(expected).scatter(1, largest(hidden, min(k, 7)), True)
    assert read.sum(-1).tolist() == [min(k, 7)] * len(tokens)
    assert torch.equal(read & (hidden != 0), expected & (hidden != 0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from(LEVELS), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_gathered_rows_give_the_masked_product_under_ties(tokens: list[list[float]], k: int) -> None:
    hidden, weight = torch.tensor(tokens, dtype=torch.float64), random(5, 7)
    method = TopKFeedForward(k=k)
    torch.testing.assert_close(
        method.project(hidden, weight.t().contiguous(), None), linear(method.mask(hidden), weight), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("k", [1, 8, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_gathered_rows_give_the_masked_product_in_every_precision(dtype: torch.dtype, k: int, bias: bool) -> None:
    hidden, weight = random(2, 3, 40).to(dtype), (random(16, 40, seed=1) / math.sqrt(40)).to(dtype)
    hidden[0, 0, 5:] = 0  # fewer activations than k
    added = random(16, seed=2).to(dtype) if bias else None
    method = TopKFeedForward(k=k)
    exact = linear(
        masked_by_sorting(hidden.double().view(6, 40), k).view(2, 3, 40),
        weight.double(),
        None if added is None else added.double(),
    )
    gathered = method.project(hidden, weight.t().contiguous(), added)
    masked = linear(method.mask(hidden), weight, added)
    assert gathered.dtype == masked.dtype == dtype
    for out in (gathered, masked):
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("width", [300, 1024, 8192])
def test_wide_layers(width: int) -> None:
    hidden = random(3, width).round(decimals=1)
    assert torch.equal(TopKFeedForward(k=50).mask(hidden), masked_by_sorting(hidden, 50))


def test_exact_after_relu_as_soon_as_k_reaches_the_activations() -> None:
    hidden, weight = random(6, 50).relu(), random(8, 50, seed=1)
    most = int((hidden > 0).sum(-1).max())
    assert torch.equal(TopKFeedForward(k=most).mask(hidden), hidden)
    torch.testing.assert_close(
        TopKFeedForward(k=most).project(hidden, weight.t().contiguous(), None), linear(hidden, weight)
    )
    assert not torch.equal(TopKFeedForward(k=most - 1).mask(hidden), hidden)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 0.07}, 7),
        ({"keep": 0.071}, 8),
        ({"keep": 0.001}, 1),
        ({"keep": 1}, 100),
        ({"k": 3}, 3),
        ({"k": 500}, 100),
    ],
    ids=str,
)
def test_how_many_are_kept(options: dict[str, Any], kept: int) -> None:
    method, hidden = TopKFeedForward(**options), random(4, 100)
    assert method.width(100) == kept
    assert (method.mask(hidden) != 0).sum(-1).tolist() == [kept] * 4


@pytest.mark.parametrize("method", [TopKFeedForward(k=100), TopKFeedForward(k=10**12), TopKFeedForward(keep=1.0)])
def test_all_activations_are_the_very_input(method: TopKFeedForward) -> None:
    hidden = random(4, 100)
    assert method.mask(hidden) is hidden


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_own_token_only(broken: float) -> None:
    hidden, weight = random(3, 40), random(8, 40, seed=1)
    method, rows = TopKFeedForward(k=4), weight.t().contiguous()
    masked, gathered = linear(method.mask(hidden), weight), method.project(hidden, rows, None)
    hidden[1, 7] = broken
    for out, before in (
        (linear(method.mask(hidden), weight), masked),
        (method.project(hidden, rows, None), gathered),
    ):
        assert torch.equal(out[[0, 2]], before[[0, 2]])
        assert not torch.isfinite(out[1]).any()


def test_an_infinite_activation_that_is_not_kept_leaves_no_trace() -> None:
    hidden = torch.tensor([[1.0, math.inf, math.inf, 2.0]])
    assert TopKFeedForward(k=1).mask(hidden).tolist() == [[0.0, math.inf, 0.0, 0.0]]
    assert TopKFeedForward(k=1).project(hidden, torch.eye(4), None).nan_to_num(0).isfinite().all()


def test_gradients_reach_what_was_kept_and_nothing_else() -> None:
    hidden = random(3, 20).requires_grad_()
    method = TopKFeedForward(k=5)
    method.mask(hidden).square().sum().backward()
    assert torch.equal(hidden.grad, 2 * masked_by_sorting(hidden.detach(), 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of k"),
        ({"k": 4, "keep": 0.5}, "exactly one of k"),
        ({"k": 0}, "k must"),
        ({"k": 2.5}, "k must"),
        ({"k": True}, "k must"),
        ({"keep": 0.0}, r"fraction in \(0, 1\]"),
        ({"keep": 1.5}, r"fraction in \(0, 1\]"),
        ({"keep": "half"}, r"fraction in \(0, 1\]"),
        ({"keep": math.nan}, r"fraction in \(0, 1\]"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TopKFeedForward(**options)


def test_known_by_name_and_back_from_its_recipe_entry() -> None:
    method = TopKFeedForward(k=5)
    assert METHODS["top-k-feed-forward"] is TopKFeedForward
    assert method_to_dict(method) == {"method": "top-k-feed-forward", "k": 5}
    assert method_from_dict(method_to_dict(method)) == method
    assert method.as_dense().width(40) == 40
    assert method.as_small(3).width(40) == 3
    assert method.describe() == "k = 5"
    with pytest.raises(UsageError, match="protect_first"):
        method_from_dict({"method": "top-k-feed-forward", "k": 5, "protect_first": 1})
