"""Gradients of clustered attention: clusters and refined keys are constants, and memory is linear in length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import oracle, self_attention
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, RowRanges, clustered
from hf_sparsify.patcher.methods.cluster_rows import attend_clusters
from hf_sparsify.patcher.methods.clustered import score_space
from hf_sparsify.patcher.methods.k_means import k_means
from live_storage import LiveStorage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

METHODS = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=3)]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"heads": 4, "groups": 2},
    {"heads": 3, "groups": 1, "bias": True},
    {"softcap": 1.5},
    {"bias": True, "softcap": 1.5},
]


def leaves(call: AttentionInputs) -> dict[str, Tensor]:
    """The tensors of a call that have gradients, by field."""
    fields = {name: getattr(call, name) for name in ("query", "key", "value", "bias")}
    return {name: tensor.requires_grad_() for name, tensor in fields.items() if tensor is not None}


def gradients(out: Tensor, call: AttentionInputs) -> dict[str, Tensor]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    tensors = leaves(call)
    return dict(zip(tensors, torch.autograd.grad(out, [*tensors.values()], upstream), strict=True))


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in actual.items():
        assert (grad - expected[name]).abs().max() < 1e-10, name


def clusters_of(method: ClusteredPlain, call: AttentionInputs) -> Tensor:
    generator = torch.Generator().manual_seed(method.seed)
    return k_means(score_space(call, generator), method.clusters, method.iterations, generator)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_equal_to_autograd_through_the_formulas(method: ClusteredPlain, extra: dict[str, Any]) -> None:
    call = self_attention(16, **extra)
    leaves(call)
    expected = oracle(call, clusters_of(method, call), method.refined)
    same(gradients(method.attend(call)[0], call), gradients(expected, call))


@pytest.mark.parametrize("extra", [{"groups": 1}, {"bias": True, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck_with_the_clusters_as_they_are(
    dropout: float, method: ClusteredPlain, extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = replace(self_attention(6, batch=1, heads=2, **extra), dropout=dropout)
    assigned = clusters_of(method, call)
    monkeypatch.setattr(clustered, "k_means", lambda *args: assigned)
    names = [*leaves(call)]

    def attend(*parts: Tensor) -> Tensor:
        torch.manual_seed(0)
        return method.attend(replace(call, **dict(zip(names, parts, strict=True))))[0]

    assert torch.autograd.gradcheck(attend, [*leaves(call).values()])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_dropout_gives_gradients_of_the_masks_it_drew(method: ClusteredPlain) -> None:
    call = replace(self_attention(16), dropout=0.5)
    leaves(call)
    torch.manual_seed(0)
    out = method.attend(call)[0]
    torch.manual_seed(0)
    once = attend_clusters(call, clusters_of(method, call), method.clusters, method.refined)
    assert torch.equal(out, once)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    same(gradients(out, call), gradients(once, call))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_padded_batch_has_the_gradients_of_its_sequences(method: ClusteredPlain) -> None:
    call = self_attention(16, batch=2)
    last = torch.tensor([[16], [11]]).expand(2, 16)
    padded = replace(call, visibility=RowRanges(torch.zeros_like(last), last))
    leaves(call)
    found = gradients(method.attend(padded)[0], call)
    for index, length in enumerate((16, 11)):
        parts = {name: tensor.detach()[index : index + 1, :, :length] for name, tensor in leaves(call).items()}
        one = replace(call, **parts, visibility=RowRanges.all_keys(length, length))
        out = method.attend(replace(one, **leaves(one)))[0]
        upstream = torch.randn(2, *out.shape[1:2], 16, out.shape[3], generator=torch.Generator().manual_seed(1),
                               dtype=torch.float64)[index : index + 1, :, :length]  # fmt: skip
        alone = torch.autograd.grad(out, [*leaves(one).values()], upstream)
        for name, grad in zip(leaves(one), alone, strict=True):
            assert (found[name][index : index + 1, :, :length] - grad).abs().max() < 1e-10
            assert not found[name][index, :, length:].any()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_under_checkpointing(method: ClusteredPlain, reentrant: bool) -> None:
    call = replace(self_attention(16), dropout=0.3)
    leaves(call)

    def attend(query: Tensor) -> Tensor:
        return method.attend(replace(call, query=query))[0]

    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(attend(call.query).square().sum(), call.query)
    torch.manual_seed(0)
    checkpoint(attend, call.query, use_reentrant=reentrant).square().sum().backward()
    assert call.query.grad is not None
    assert torch.equal(call.query.grad, expected)


@pytest.mark.parametrize("power", [1, 2], ids=["linear", "square"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_second_derivatives(method: ClusteredPlain, power: int) -> None:
    """A gradient penalty, against differences of it, with the same clusters."""
    call, step = self_attention(16), 1e-6
    directions = [torch.cos(part) for part in leaves(call).values()]

    def penalty(*parts: Tensor) -> Tensor:
        out = method.attend(replace(call, **dict(zip(leaves(call), parts, strict=True))))[0]
        found = torch.autograd.grad(out.pow(power).sum(), parts, create_graph=True)
        return torch.stack([grad.square().sum() for grad in found]).sum()

    parts = [part.detach().requires_grad_() for part in leaves(call).values()]
    second = torch.autograd.grad(penalty(*parts), parts)
    ahead, behind = (
        penalty(
            *((part + sign * step * one).detach().requires_grad_() for part, one in zip(parts, directions, strict=True))
        )
        for sign in (1, -1)
    )
    found = torch.stack([(grad * one).sum() for grad, one in zip(second, directions, strict=True)]).sum()
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_two_backward_passes_and_gradients_of_the_values_alone(method: ClusteredPlain) -> None:
    call = self_attention(16)
    call.value.requires_grad_()
    out = method.attend(call)[0]
    one, other = (torch.autograd.grad(out.sum(), call.value, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, other)
    with torch.no_grad():
        assert not method.attend(call)[0].requires_grad


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_stays_for_the_backward_pass_is_linear_in_length(method: ClusteredPlain) -> None:
    def alive(length: int) -> tuple[float, float]:
        call = self_attention(length)
        leaves(call)
        with LiveStorage() as storage:
            out = method.attend(call)[0]
            live = storage.live
            torch.autograd.grad(out.sum(), [*leaves(call).values()])
        return live / call.query.nbytes, storage.peak / call.query.nbytes

    (short, short_peak), (long, long_peak) = alive(512), alive(1024)
    assert max(short, long) < 2  # the output, and a number for each query
    assert long_peak < 1.2 * short_peak
