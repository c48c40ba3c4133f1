"""Clustered attention by Triton, against its definition in torch: limits, padding, refusals, waiting."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from clustered_oracle import dense
from fake_cuda import CUDA, fake_cuda, no_copies
from hf_sparsify.patcher.binding import patching
from hf_sparsify.patcher.kernels import kernel_of, triton_k_means, triton_refine
from hf_sparsify.patcher.kernels import triton_clusters as kernel
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, FullMask, RowRanges
from live_storage import LiveStorage
from native_clusters import call_of, double, near
from patched_models import patched
from torch._subclasses.fake_tensor import DataDependentOutputException
from triton_clusters import DEVICE, MARKS, TOLERANCE, attend, between, on_device, valid_tokens
from triton_interpreter import mend_products

METHODS = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5)]

pytestmark = MARKS


@pytest.fixture(autouse=True)
def right_products(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_products(monkeypatch)


def small(tokens: int = 20, **fields: Any) -> Any:
    return call_of(tokens, **{"batch": 1, "heads": 2, "groups": 1, **fields})


@pytest.mark.parametrize(("iterations", "clusters"), [(0, 7), (2, 19)])
def test_as_many_clusters_as_distinct_queries_is_dense(iterations: int, clusters: int) -> None:
    call = small(20)
    call = replace(call, query=call.query[:, :, torch.arange(20).remainder(11).clamp(max=6)])
    near(attend(ClusteredPlain(clusters=clusters, iterations=iterations), call), dense(call))


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize(
    "method",
    [ClusteredPlain(), ClusteredPlain(clusters=2**40), Clustered(clusters=3, k=2**40), Clustered(min_length=71)],
)
def test_what_is_dense_by_its_length(method: ClusteredPlain, tokens: int) -> None:
    call = small(tokens, softcap=2.0)
    near(attend(method, call), dense(call))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_queries_that_are_all_the_same(method: ClusteredPlain) -> None:
    call = small()
    for value in (call.query[:, :, :1], torch.zeros(()), torch.full((), 1e4)):
        same = replace(call, query=value.expand(1, 2, 20, 16))
        near(attend(method, same), dense(same))
    constant = replace(call, key=torch.ones_like(call.key))
    near(attend(method, constant), dense(constant))


@pytest.mark.parametrize(("where", "poison"), [("query", torch.nan), ("key", torch.inf), ("value", torch.nan)])
def test_what_is_not_finite_spoils_its_own_heads(where: str, poison: float) -> None:
    call = small(heads=4, groups=2)
    tensor = getattr(call, where).clone()
    tensor[0, 0, 10, 3] = poison
    spoilt = replace(call, **{where: tensor})
    expected = METHODS[1].attend(spoilt)[0]
    finite = torch.isfinite(attend(METHODS[1], spoilt))
    assert torch.equal(finite.all(-1), torch.isfinite(expected).all(-1))
    assert bool(finite[:, 2:].all())


# Whole, padded on the right, on the left, on both sides, all padding, and as short as there are clusters.
FIRST, LAST = [0, 0, 7, 3, 20, 1], [20, 13, 20, 18, 20, 5]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (ClusteredPlain(clusters=4), torch.float32),
        (Clustered(clusters=4, k=5), torch.bfloat16),
        (Clustered(clusters=4, k=5, min_length=14, iterations=1), torch.float32),
        (ClusteredPlain(clusters=4, min_length=14, iterations=1), torch.float32),
    ],
    ids=str,
)
def test_a_padded_batch_is_as_in_the_definition(method: ClusteredPlain, dtype: torch.dtype) -> None:
    """Some of its sequences stay dense, because they are short or have no more tokens than clusters."""
    call = between(small(batch=6, dtype=dtype), FIRST, LAST)
    expected, expected_counts = method.attend(double(call), count=True)
    out, counts = kernel.attend(on_device(call), method, count=True)
    assert counts == expected_counts
    assert out.dtype == dtype
    near(out.cpu(), expected, TOLERANCE[dtype])
    assert not out.cpu().transpose(1, 2)[~valid_tokens(FIRST, LAST, 20)].any()


def test_what_stands_in_the_padding_changes_nothing() -> None:
    call = small(batch=2)
    first, last = [0, 4], [13, 20]
    one, other = (attend(METHODS[1], between(call, first, last, poison)) for poison in (torch.nan, 1e4))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("tokens", "clusters", "iterations"), [(50, 7, 3), (130, 3, 1), (33, 32, 0)])
def test_clusters_are_those_of_the_definition(tokens: int, clusters: int, iterations: int) -> None:
    """Also where updates look at a part of the points. Queries stand in groups, hard to mistake."""
    call = small(tokens)
    centres = torch.randn(1, 2, clusters, 16, generator=torch.Generator().manual_seed(5))
    call = replace(call, query=6 * centres[:, :, torch.arange(tokens) % clusters] + 0.2 * call.query)
    method = ClusteredPlain(clusters=clusters, iterations=iterations)
    near(attend(method, call), method.attend(double(call))[0])


@pytest.mark.parametrize(
    ("width", "value_width", "dtype", "softcap"), [(128, 64, torch.float16, None), (40, 24, torch.float32, 1.5)]
)
def test_random_points(width: int, value_width: int, dtype: torch.dtype, softcap: float | None) -> None:
    call = small(70, heads=3, width=width, value_width=value_width, dtype=dtype, softcap=softcap)
    method = Clustered(clusters=6, k=33)
    near(attend(method, call), method.attend(double(call))[0], TOLERANCE[dtype])


def test_the_global_state_and_the_inputs_stay_as_they_were() -> None:
    call, before = on_device(small(30)), torch.get_rng_state()
    copies = [tensor.clone() for tensor in (call.query, call.key, call.value)]
    method = Clustered(clusters=4, k=5)
    first = attend(method, call)
    assert torch.equal(attend(method, call), first)
    assert not torch.equal(attend(replace(method, seed=1), call), first)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(attend(method, call), first)
    assert torch.equal(torch.get_rng_state(), before)
    for tensor, copy in zip((call.query, call.key, call.value), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_nothing_in_gives_nothing_out() -> None:
    for fields in ({"tokens": 0}, {"batch": 0}):
        call = small(**fields)
        assert attend(Clustered(), call).shape == call.value.expand(-1, 2, -1, -1).shape


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout": ("dropout", {"dropout": 0.1}),
    "bias": ("a position bias", {"bias": torch.zeros(1, 1, 20, 20)}),
    "sinks": ("attention sinks", {"sinks": torch.zeros(2)}),
    "cache": ("queries of other tokens than the keys", {"query": torch.zeros(1, 2, 1, 16)}),
    "mask": ("a mask of its own for each query", {"visibility": FullMask(torch.ones(1, 1, 20, 20, dtype=torch.bool))}),
}


@pytest.mark.parametrize(("reason", "fields"), REFUSED.values(), ids=REFUSED)
def test_what_goes_the_torch_way(reason: str, fields: dict[str, Any]) -> None:
    call = replace(small(), **fields)
    assert kernel.refusal(call, Clustered()) == reason
    with pytest.raises(ValueError, match=reason):
        kernel.attend(call, Clustered())
    assert kernel_of(Clustered(), "cuda") is kernel_of(ClusteredPlain(), "cuda") is kernel
    assert kernel.refusal(small(), Clustered(clustering="hamming")) == "clusters of hash codes"
    assert kernel.refusal(small(), Clustered(), observer=lambda chunk: None) == "calibration looks at the scores"


@pytest.mark.skipif(DEVICE == "cuda", reason="no kernel runs after an assertion that failed on a GPU")
def test_rows_that_differ_fail_an_assertion() -> None:
    call = replace(small(), visibility=RowRanges.causal(20, 20))
    with pytest.raises(RuntimeError, match="every query of a sequence to see the same keys"):
        attend(Clustered(), call)


@pytest.mark.parametrize("method", [*METHODS, Clustered(min_length=30), Clustered(clusters=3, min_length=15)], ids=str)
def test_nothing_waits_for_the_gpu(method: ClusteredPlain, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that have no content, and without the kernels themselves; a look at a content raises an error."""
    launched = []
    monkeypatch.setattr(type(triton_refine._refine), "run", lambda self, *args, **more: launched.append(self))
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(triton_k_means, "_direction", lambda width, seed, device: torch.empty(width, device=device))
    with fake_cuda(), no_copies():
        query, key = (torch.empty(2, 20, heads, 16, device=CUDA).transpose(1, 2) for heads in (4, 2))
        ends = torch.empty(2, 20, dtype=torch.int64, device=CUDA)
        call = AttentionInputs(query, key, key, RowRanges(ends, ends))
        assert kernel.refusal(call, method) is None
        out, _ = kernel.attend(call, method)
        with pytest.raises(DataDependentOutputException):
            kernel.attend(call, method, count=True)
    assert out.device == CUDA
    assert launched[-1] is triton_refine._refine


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_call_after_patching_leaves_nothing_alive(method: ClusteredPlain, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives on could not be recorded as a CUDA graph."""
    monkeypatch.setattr(patching, "kernel_of", lambda method, device: kernel)
    triton_k_means._direction.cache_clear()
    patched("bert", method)
    call = small(width=8)
    with LiveStorage() as storage:
        out = kernel.attend(call, method)
        assert storage.live > 0
        del out
        gc.collect()  # the interpreter's cycles
        assert storage.live == 0


@pytest.mark.parametrize(("first", "last"), [([0], [20, 13]), ([0, 4], [20]), ([0, 4], [20, 13])])
@pytest.mark.parametrize("lie", ["in rows", "in columns", "expanded"])
def test_ends_of_sequences_however_they_lie(first: list[int], last: list[int], lie: str) -> None:
    call, method = on_device(small(batch=2)), Clustered(clusters=4, k=5, min_length=15)

    def ends(numbers: list[int], expanded: bool) -> torch.Tensor:
        rows = torch.tensor(numbers, device=DEVICE).unsqueeze(1).expand(-1, 20)
        return rows if expanded else rows.t().contiguous().t() if lie == "in columns" else rows.contiguous()

    ranges = RowRanges(ends(first, False), ends(last, lie == "expanded"))
    call = replace(call, visibility=ranges)
    expected, counts = method.attend(double(call), count=True)
    out, counted = kernel.attend(call, method, count=True)
    near(out, expected)
    assert counted == counts


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_calls_can_be_captured(method: ClusteredPlain) -> None:
    call = on_device(between(small(200, batch=2, dtype=torch.bfloat16), [0, 30], [200, 190]))
    expected = kernel.attend(call, method)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.attend(call, method)[0]
    graph.replay()
    assert torch.equal(out, expected)
