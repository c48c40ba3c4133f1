"""Clustered attention by the native library, against its definition in torch: limits, padding, threads, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import dense
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.kernels import clusters as kernel
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, FullMask, RowRanges
from native_clusters import METHOD_LIST, attend, call_of, double, near
from torch import Tensor

HAMMING = [replace(method, clustering="hamming") for method in METHOD_LIST]

pytestmark = pytest.mark.skipif(native() is None, reason="the native library is not built, or SPARSIFY_NATIVE is 0")


@pytest.mark.parametrize("clusters", [7, 9, 39])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_as_many_clusters_as_distinct_queries_is_dense(iterations: int, clusters: int) -> None:
    call = call_of(40)
    call = replace(call, query=call.query[:, :, torch.arange(40).remainder(11).clamp(max=6)])
    near(attend(ClusteredPlain(clusters=clusters, iterations=iterations), call), dense(call))
    near(attend(Clustered(clusters=clusters, iterations=iterations, k=3), call), dense(call))


@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("clusters", [20, 21, 2**40])
def test_as_many_clusters_as_tokens_is_dense(clusters: int, tokens: int) -> None:
    call = call_of(tokens)
    near(attend(ClusteredPlain(clusters=clusters), call), dense(call))
    near(attend(Clustered(clusters=clusters, k=3), call), dense(call))


@pytest.mark.parametrize("k", [20, 10**9, 2**40])
@pytest.mark.parametrize("clusters", [1, 3])
def test_a_k_of_all_keys_is_dense(clusters: int, k: int) -> None:
    call = call_of(softcap=2.0)
    near(attend(Clustered(clusters=clusters, k=k), call), dense(call))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_queries_that_are_all_the_same(method: ClusteredPlain) -> None:
    call = call_of()
    for value in (call.query[:, :, :1], torch.zeros(()), torch.full((), 1e4)):
        same = replace(call, query=value.expand(2, 4, 20, 16))
        near(attend(method, same), dense(same))
    constant = replace(call, key=torch.ones_like(call.key))
    near(attend(method, constant), dense(constant))


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_spoils_what_it_does_in_torch(where: str) -> None:
    for poison in (torch.nan, torch.inf, -torch.inf):
        call = call_of(600, batch=1)
        tensor = getattr(call, where).clone()
        tensor[0, 0, 100, 3] = poison
        spoilt = replace(call, **{where: tensor})
        for method in (*METHOD_LIST, Clustered(clusters=3, k=600)):
            # With every key refined no query has to do with another's NaN.
            expected = dense(spoilt) if method.refined == 600 else method.attend(spoilt)[0]
            finite = torch.isfinite(attend(method, spoilt))
            # An infinite key may score -inf and weigh nothing.
            assert torch.equal(finite.all(-1), torch.isfinite(expected).all(-1))
            # The other KV head sees none of it.
            assert bool(finite[:, 2:].all())


def padded(call: AttentionInputs, poison: float) -> tuple[AttentionInputs, Tensor]:
    """Four sequences: whole, padded on the right, with holes, all padding; and their valid tokens."""
    valid = torch.ones(4, call.query.shape[2], dtype=torch.bool)
    valid[1, 13:] = False
    valid[2, [0, 3, 4, 9, 12, 17, 19]] = False
    valid[3] = False
    hidden = ~valid[:, None, :, None]
    parts = {name: getattr(call, name).masked_fill(hidden, poison) for name in ("query", "key", "value")}
    visible = valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
    return replace(call, **parts, visibility=FullMask(visible)), valid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*METHOD_LIST, *HAMMING, Clustered(k=2**31), Clustered(clusters=15, k=15)], ids=str)
def test_a_padded_sequence_is_as_it_is_alone(method: ClusteredPlain, dtype: torch.dtype) -> None:
    call, valid = padded(call_of(batch=4, dtype=dtype), torch.nan)
    out, counts = kernel.attend(call, method, count=True)
    assert counts == method.attend(double(call), count=True)[1]
    for index in range(4):
        assert not out[index, :, ~valid[index]].any()
        if not valid[index].any():
            continue
        tensors = {name: getattr(call, name)[index : index + 1, :, valid[index]] for name in ("query", "key", "value")}
        count = int(valid[index].sum())
        alone = replace(call, **tensors, visibility=RowRanges.all_keys(count, count))
        assert torch.equal(out[index, :, valid[index]], attend(method, alone)[0])


@pytest.mark.parametrize("min_length", [0, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", HAMMING, ids=str)
def test_clusters_of_codes_are_found_in_torch(method: ClusteredPlain, dtype: torch.dtype, min_length: int) -> None:
    """The library then attends by them."""
    call, valid = padded(call_of(batch=4, dtype=dtype), torch.nan)
    method = replace(method, min_length=min_length)
    out, expected = attend(method, call).transpose(1, 2), method.attend(call)[0].transpose(1, 2)
    assert not out[~valid].any()
    near(out[valid], expected[valid], 1e-5 if dtype == torch.float32 else 1e-2)
    by_rows = attend(replace(method, clustering="rows"), call).transpose(1, 2)
    assert float((by_rows - out)[0].abs().max()) > 1e-2


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_ranges_say_the_same_as_a_mask(method: ClusteredPlain) -> None:
    call = call_of(20)
    last = torch.tensor([[20], [13]]).expand(-1, 20)
    by_range = replace(call, visibility=RowRanges(torch.zeros_like(last), last))
    visible = (torch.arange(20) < last[:, :1])[:, None, None, :].expand(-1, 1, 20, -1)
    assert torch.equal(attend(method, by_range), attend(method, replace(call, visibility=FullMask(visible))))
    empty = replace(call, visibility=RowRanges(last, last))
    assert not attend(method, empty).any()


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_short_sequences_stay_dense(method: ClusteredPlain) -> None:
    call, valid = padded(call_of(batch=4), torch.nan)
    method = replace(method, min_length=15)
    out, counts = kernel.attend(call, method, count=True)
    expected, expected_counts = method.attend(double(call), count=True)
    assert counts == expected_counts
    near(out[1:].transpose(1, 2)[valid[1:]], expected[1:].transpose(1, 2)[valid[1:]])
    assert not out.transpose(1, 2)[~valid].any()
    assert kernel.refusal(call_of(), replace(method, min_length=21)) == "fewer than 21 tokens, which stay dense"


@pytest.mark.parametrize("method", [ClusteredPlain(clusters=20), Clustered(clusters=20, k=9)], ids=str)
def test_threads_change_nothing(method: ClusteredPlain) -> None:
    call = call_of(2100, batch=1, heads=3, groups=1)
    one = attend(method, call)
    for threads in (2, 3, 7, 64, None):
        assert torch.equal(attend(method, call, threads), one)
    with pytest.raises(ValueError, match="threads"):
        attend(method, call, 0)


def test_the_global_state_and_the_inputs_stay_as_they_were() -> None:
    call, before = call_of(), torch.get_rng_state()
    copies = [tensor.clone() for tensor in (call.query, call.key, call.value)]
    method = Clustered(clusters=4, k=5)
    first = attend(method, call)
    assert torch.equal(attend(method, call), first)
    assert not torch.equal(attend(replace(method, seed=1), call), first)
    assert torch.equal(torch.get_rng_state(), before)
    for tensor, copy in zip((call.query, call.key, call.value), copies, strict=True):
        assert torch.equal(tensor, copy)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout": ("dropout", {"dropout": 0.1}),
    "bias": ("a position bias", {"bias": torch.zeros(1, 1, 20, 20)}),
    "sinks": ("attention sinks", {"sinks": torch.zeros(4)}),
    "width": ("head size 12", {"query": torch.zeros(2, 4, 20, 12), "key": torch.zeros(2, 2, 20, 12)}),
    "value width": ("head size 264", {"value": torch.zeros(2, 2, 20, 264)}),
    "dtype": ("stored as bfloat16, float32", {"value": torch.zeros(2, 2, 20, 16, dtype=torch.bfloat16)}),
    "cache": ("queries of other tokens than the keys", {"query": torch.zeros(2, 4, 1, 16)}),
    "gradients": ("gradients", {"query": torch.zeros(2, 4, 20, 16, requires_grad=True)}),
}


@pytest.mark.parametrize(("reason", "fields"), REFUSED.values(), ids=REFUSED)
def test_what_goes_the_torch_way(reason: str, fields: dict[str, Any]) -> None:
    call = replace(call_of(), **fields)
    assert kernel.refusal(call, Clustered()) == reason
    with pytest.raises(ValueError, match=reason):
        kernel.attend(call, Clustered())
    assert kernel.refusal(call_of(dtype=torch.float64), Clustered()) == "stored as float64"
    assert kernel.refusal(call_of(), Clustered(), observer=lambda chunk: None) == "calibration looks at the scores"


def test_rows_that_differ_are_refused_as_in_torch() -> None:
    call = replace(call_of(), visibility=RowRanges.causal(20, 20))
    with pytest.raises(NotPatchableError, match="every query of a sequence to see the same keys"):
        kernel.attend(call, Clustered())
