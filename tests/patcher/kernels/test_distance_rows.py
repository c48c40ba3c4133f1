"""The native rows kernel reads a bias by distance where it lies, with the same result as of its matrix, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from hf_sparsify.patcher.methods.rounded_keys import RoundedKeys
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

METHODS = [TopK(k=9), TopK(k=9, compensation="sdc+vmc"), TopTheta(k=9, compensation="sdc"), TopTheta(k=9)]


def call_of(
    queries: int, keys: int, *, bias_shape: tuple[int, int] = (1, 4), dtype: torch.dtype = torch.float32
) -> AttentionInputs:
    generator = torch.Generator().manual_seed(queries + keys)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return AttentionInputs(
        random(2, 4, queries, 32),
        random(2, 2, keys, 32),
        random(2, 2, keys, 24),
        RowRanges.causal(queries, keys),
        scale=0.3,
        bias=DistanceBias(random(*bias_shape, queries + keys - 1), queries),
    )


def with_matrix(call: AttentionInputs) -> AttentionInputs:
    assert isinstance(call.bias, DistanceBias)
    return replace(call, bias=call.bias.whole().float())


def run(call: AttentionInputs, method: TopK | TopTheta) -> Tensor:
    assert rows.refusal(call, method) is None
    return rows.attend(call, method, threads=2)[0]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias_shape", [(1, 4), (2, 4), (1, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(97, 97), (33, 301), (1, 203), (1, 1)])
def test_to_the_bit(
    queries: int, keys: int, bias_shape: tuple[int, int], dtype: torch.dtype, method: TopK | TopTheta
) -> None:
    call = call_of(queries, keys, bias_shape=bias_shape, dtype=dtype)
    out = run(call, method)
    assert torch.equal(out, run(with_matrix(call), method))
    assert keys == 1 or not torch.equal(out, run(replace(call, bias=None), method))


def test_a_view_of_a_longer_bias() -> None:
    """As the binding cuts it for a cache with room for more keys."""
    call = call_of(5, 40)
    longer = torch.randn(1, 4, 60)
    cut = replace(call, bias=DistanceBias(longer[..., :44], 5))
    assert torch.equal(run(cut, METHODS[0]), run(with_matrix(cut), METHODS[0]))


def test_steps_that_read_rounded_keys_first() -> None:
    call, method = call_of(1, 2000), TopK(k=9)
    outs = []
    for given in (call, with_matrix(call)):
        staged = replace(given, rounded=RoundedKeys.room_for(given.key, 2000))
        outs.append(run(staged, method))
        assert staged.rounded is not None
        assert staged.rounded.used
    assert torch.equal(*outs)
    torch.testing.assert_close(outs[0], method.attend(call)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (torch.zeros(1, 4, 193).requires_grad_(), "gradients"),
        (torch.zeros(1, 4, 193, dtype=torch.float64), "a position bias that is trained or not float32"),
        (torch.full((1, 4, 193), -torch.inf), "a position bias that hides keys"),
    ],
    ids=["trained", "float64", "infinite"],
)
def test_what_is_refused(numbers: Tensor, reason: str) -> None:
    assert rows.refusal(replace(call_of(97, 97), bias=DistanceBias(numbers, 97)), TopK(k=9)) == reason
