"""Gradients of rows as autograd asks for them: dropout, eval, repeated and partial backward passes, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import AttentionInputs, TopK, TopTheta
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from row_autograd import NAMES, assert_equal, attended, gradients
from row_oracle import run
from tiny_models import attention_inputs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FEW = TopK(k=3)


def trained(call: AttentionInputs, *names: str) -> AttentionInputs:
    """The same call with leaves that need gradients."""
    return replace(
        call, **{n: getattr(call, n).detach().clone().requires_grad_() for n in names or ("query", "key", "value")}
    )


def sparse(call: AttentionInputs, size: int | None = 2) -> Tensor:
    return run(call, FEW, chunk_size=size).output


@pytest.mark.parametrize("compensation", ["none", "sdc+vmc"])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_dropout_has_the_same_masks_in_both_passes(probability: float, compensation: str) -> None:
    """Case 19, in chunks of two queries; the masks are what identity values show."""
    method = TopK(k=8 if compensation == "none" else 3, compensation=compensation)
    call = replace(attention_inputs("causal", queries=8, keys=8), dropout=probability)
    eye = torch.eye(8, dtype=torch.float64).expand(2, 2, 8, 8)
    weights = run(replace(call, value=eye, dropout=0.0), method, chunk_size=2).output
    torch.manual_seed(5)
    dropped = run(replace(call, value=eye), method, chunk_size=2).output
    factors = torch.where(weights > 0, dropped / weights, 0)
    assert bool((factors == 0).any())
    assert bool((factors > 1.9).any()) == (probability < 1)

    def seeded(inputs: AttentionInputs) -> Tensor:
        torch.manual_seed(5)
        return run(inputs, method, chunk_size=2).output

    found = gradients(seeded, call)
    if compensation == "none":
        assert_equal(found, gradients(lambda c: attended(c, None, factors), call), 1e-10)
    out_grad = torch.cos(torch.arange(2 * 4 * 8 * 4)).view(2, 4, 8, 4).double()
    of_value = (dropped.mT @ out_grad).view(2, 2, 2, 8, 4).sum(2)
    torch.testing.assert_close(found["value"], of_value, rtol=1e-10, atol=1e-10)


def test_the_backward_pass_leaves_the_global_generator_alone() -> None:
    call = trained(replace(attention_inputs("causal"), dropout=0.5))
    torch.manual_seed(0)
    out = sparse(call)
    before = torch.get_rng_state()
    first = torch.autograd.grad(out.sum(), call.key, retain_graph=True)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(torch.autograd.grad(out.sum(), call.key)[0], first)


def test_two_calls_draw_different_masks() -> None:
    call = replace(attention_inputs("causal"), dropout=0.5)
    assert not torch.equal(sparse(call), sparse(call))


def test_without_gradients_nothing_is_kept() -> None:
    """Case 20."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        with torch.no_grad():
            sparse(trained(attention_inputs("causal")))
        sparse(attention_inputs("causal"))
        assert not kept
        sparse(trained(attention_inputs("causal")))
        assert kept


def test_two_backward_passes_give_the_same_and_two_forward_passes_do_not_mix() -> None:
    """Case 21."""
    calls = [trained(attention_inputs("causal", seed=seed)) for seed in (0, 1)]
    outs = [sparse(call) for call in calls]
    for call, out in zip(calls, outs, strict=True):
        first, second = (
            torch.autograd.grad(out.sum(), (call.query, call.key, call.value), retain_graph=True) for _ in "ab"
        )
        alone = torch.autograd.grad(sparse(call).sum(), (call.query, call.key, call.value))
        for a, b, c in zip(first, second, alone, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_change_no_gradient(reentrant: bool, dropout: float) -> None:
    call = replace(attention_inputs("left"), dropout=dropout)

    def seeded(inputs: AttentionInputs, kept: bool) -> Tensor:
        torch.manual_seed(7)
        if kept:
            return sparse(inputs)
        parts = inputs.query, inputs.key, inputs.value
        return checkpoint(
            lambda q, k, v: sparse(replace(inputs, query=q, key=k, value=v)), *parts, use_reentrant=reentrant
        )  # type: ignore[no-any-return]

    assert_equal(gradients(lambda c: seeded(c, False), call), gradients(lambda c: seeded(c, True), call), 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distance", [False, True])
def test_only_what_needs_a_gradient_gets_one(name: str, distance: bool) -> None:
    """Case 22."""
    call = attention_inputs("causal", bias=True, sinks=True)
    if distance:
        call = replace(call, bias=DistanceBias(torch.randn(1, 4, 13, dtype=torch.float64), 7))
    every, one = gradients(sparse, call), gradients(sparse, call, (name,))
    expected = {part: grad if part in (name, "output") else None for part, grad in every.items()}
    assert_equal(one, expected, 0)


@pytest.mark.parametrize("power", [1, 2], ids=["linear", "square"])
def test_a_second_derivative_is_refused(power: int) -> None:
    """Case 22: never silently wrong. The gradient of a loss that is linear in the output needs none itself."""
    call = trained(attention_inputs("causal"))
    with pytest.raises(RuntimeError, match="second derivatives through sparse attention are not supported: compute"):
        torch.autograd.grad(sparse(call).pow(power).sum(), call.query, create_graph=True)


def test_inputs_that_were_overwritten_are_noticed() -> None:
    call = trained(attention_inputs("causal"))
    value = call.value * 1
    out = sparse(replace(call, value=value))
    value.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_reaches_neither_pass(dtype: torch.dtype, inside: bool) -> None:
    """Case 15: scores stay float32, whether the backward pass runs under autocast or not."""

    def attend(call: AttentionInputs, enabled: bool) -> tuple[Any, ...]:
        leaves = trained(call)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = sparse(leaves)
            if inside:
                out.float().square().sum().backward()
        if not inside:
            out.float().square().sum().backward()
        return out, leaves.query.grad, leaves.key.grad, leaves.value.grad

    call = attention_inputs("causal", dtype=dtype)
    for plain, cast in zip(attend(call, False), attend(call, True), strict=True):
        assert plain.dtype == cast.dtype == dtype
        assert torch.equal(plain, cast)


def test_counts_and_observers_are_the_same_with_gradients() -> None:
    call = attention_inputs("left")
    seen: list[Tensor] = []
    for made in (call, trained(call)):
        _, counts = TopTheta(k=2).attend(made, count=True, observer=lambda chunk: seen.append(chunk.scores))
        assert counts is not None
        seen.append(counts.kept)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not seen[2].requires_grad


def test_a_sum_of_values_does_not_hide_their_gradient() -> None:
    call = attention_inputs("all", queries=1, keys=9)
    method = TopK(k=2, compensation="sdc+vmc")
    with_sum = replace(call, value_sum=call.value.sum(2))
    found = gradients(lambda c: method.attend(c)[0], with_sum)
    assert_equal(found, gradients(lambda c: method.attend(c)[0], call), 1e-12)
