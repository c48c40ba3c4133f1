"""torch.func gives the derivatives that autograd gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.methods import AttentionInputs, AttentionMethod, Clustered, RowRanges, TopK
from hf_sparsify.patcher.methods.functional import transforms_active
from torch import Tensor
from torch.func import grad, jvp

METHODS = [TopK(k=3), TopK(k=3, compensation="sdc+vmc"), Clustered(clusters=3, k=4)]


@pytest.fixture
def parts() -> list[Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 12, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def loss(method: AttentionMethod, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    call = AttentionInputs(query, key, value, RowRanges.all_keys(12, 12), scale=0.5)
    if not isinstance(method, Clustered):
        call = replace(call, value_sum=value.detach().sum(2))  # as a cache keeps it: no derivative
    return method.attend(call)[0].square().sum()


def test_a_transform_is_noticed() -> None:
    seen = []
    grad(lambda x: seen.append(transforms_active()) or x)(torch.ones(()))  # type: ignore[func-returns-value]
    assert seen == [True]
    assert not transforms_active()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_grad_of_one_part(method: AttentionMethod, number: int, parts: list[Tensor]) -> None:
    found = grad(lambda *given: loss(method, *given), argnums=number)(*parts)
    leaves = [part.clone().requires_grad_(place == number) for place, part in enumerate(parts)]
    (expected,) = torch.autograd.grad(loss(method, *leaves), leaves[number])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_jvp(method: AttentionMethod, parts: list[Tensor]) -> None:
    _, found = jvp(lambda *given: loss(method, *given), tuple(parts), tuple(torch.cos(part) for part in parts))
    leaves = [part.clone().requires_grad_() for part in parts]
    gradients = torch.autograd.grad(loss(method, *leaves), leaves)
    expected = sum(((g * torch.cos(part)).sum() for g, part in zip(gradients, parts, strict=True)), torch.zeros(()))
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_gradient_penalty(method: AttentionMethod, parts: list[Tensor]) -> None:
    """The second derivative, against differences of the first."""
    query, *rest = parts
    step = 1e-6 * torch.cos(query)

    def penalty(given: Tensor) -> Tensor:
        return grad(lambda q: loss(method, q, *rest))(given).square().sum()

    change = (penalty(query + step) - penalty(query - step)) / 2
    torch.testing.assert_close((grad(penalty)(query) * step).sum(), change, rtol=1e-5, atol=1e-9)
