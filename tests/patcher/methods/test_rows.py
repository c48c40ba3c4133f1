"""Dense attention row by row: what every method shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import AttentionInputs, Chunk, FullMask, RowRanges, TopK, TopTheta, attend_rows
from hf_sparsify.patcher.methods.chunk import Selection
from live_storage import TensorSizes
from tiny_models import LAYOUTS, attention_inputs, brute_force, everything, visible_keys
from torch import Tensor

EXTRAS: list[dict[str, Any]] = [{}, {"bias": True}, {"softcap": 2.0}, {"sinks": True}]


def dense(call: AttentionInputs, **options: Any) -> Tensor:
    return attend_rows(call, **options)[0]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_equals_brute_force(layout: str, extra: dict[str, Any]) -> None:
    call = attention_inputs(layout, **extra)
    expected, kept = brute_force(call, everything)
    out, counts = attend_rows(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))
    assert not counts.fallback.any()
    assert not counts.rescued.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_equals_torch(layout: str) -> None:
    call = attention_inputs(layout, queries=6, keys=9, bias=True)
    visible = visible_keys(call.visibility, 2, 4, 6, 9)
    assert call.bias is not None
    expected = torch.nn.functional.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=call.bias.masked_fill(~visible, -torch.inf),
        scale=call.scale,
        enable_gqa=True,
    )
    sees = visible.any(-1)
    out = dense(call)
    torch.testing.assert_close(out[sees], expected[sees], rtol=1e-12, atol=1e-12)
    assert not out[~sees].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunk_size_does_not_matter(layout: str) -> None:
    call = attention_inputs(layout, queries=7, keys=9, bias=True)
    whole, counts = attend_rows(call, TopK(k=3).select, count=True, chunk_size=7)
    assert counts is not None
    for size in (1, 2, 3, 100):
        out, chunked = attend_rows(call, TopK(k=3).select, count=True, chunk_size=size)
        torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
        assert chunked is not None
        assert torch.equal(chunked.kept, counts.kept)
        assert torch.equal(chunked.v_rows, counts.v_rows)


@pytest.mark.parametrize("method", [None, TopK(k=2), TopTheta(k=2)], ids=["dense", "top-k", "top-theta"])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_see_nothing_give_zeros(method: TopK | TopTheta | None, sinks: bool) -> None:
    call = attention_inputs("left", sinks=sinks)
    for seen in (
        call.visibility,
        RowRanges(torch.full((1, 7), 3), torch.full((1, 7), 3)),
        FullMask(torch.zeros(1, 1, 7, 7, dtype=torch.bool)),
    ):
        call = replace(call, visibility=seen)
        empty = (seen.lengths() == 0).expand(2, 4, 7)
        assert bool(empty.any())
        out, counts = attend_rows(call, count=True) if method is None else method.attend(call, count=True)
        assert torch.isfinite(out).all()
        assert not out[empty].any()
        assert counts is not None
        assert not counts.kept[empty].any()


def test_a_query_that_sees_nothing_reads_no_v_rows() -> None:
    call = attention_inputs(queries=1, keys=5)
    call = replace(call, visibility=RowRanges(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1).long()))
    _, counts = TopK(k=2).attend(call, count=True)
    assert counts is not None
    assert counts.v_rows.tolist() == [[[0], [0]], [[0], [0]]]


@pytest.mark.parametrize("method", [None, TopK(k=2), TopTheta(k=2)], ids=["dense", "top-k", "top-theta"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layout", ["causal", "left", "right", "window", "full"])
def test_what_a_row_may_not_see_never_reaches_it(layout: str, poison: float, method: TopK | TopTheta | None) -> None:
    call = attention_inputs(layout, queries=7, keys=7, bias=True)
    attend: Callable[[AttentionInputs], Tensor] = dense if method is None else lambda c: method.attend(c)[0]
    clean = attend(call)
    visible = visible_keys(call.visibility, 2, 4, 7, 7)
    reached = 0
    for j in range(7):
        key, value = call.key.clone(), call.value.clone()
        key[:, :, j] = poison
        value[:, :, j] = poison
        out = attend(replace(call, key=key, value=value))
        blind = ~visible[..., j]
        reached += int(blind.sum())
        assert torch.equal(out[blind], clean[blind])
    assert reached > 0


@pytest.mark.parametrize("method", [None, TopK(k=2), TopTheta(k=2)], ids=["dense", "top-k", "top-theta"])
def test_a_poisoned_query_spoils_only_its_own_row(method: TopK | TopTheta | None) -> None:
    call = attention_inputs("left")
    query = call.query.clone()
    query[1, :, :2] = torch.nan
    query[0, 2, 5] = torch.nan
    poisoned = replace(call, query=query)
    if method is None:
        out, clean = dense(poisoned), dense(call)
    else:
        out, clean = method.attend(poisoned)[0], method.attend(call)[0]
    assert not out[1, :, :2].any()
    assert out[0, 2, 5].isnan().all()
    clean[0, 2, 5] = torch.nan
    torch.testing.assert_close(out, clean, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_value_reaches_the_rows_that_keep_it(poison: float) -> None:
    call = attention_inputs("causal")
    value = call.value.clone()
    value[:, :, 3] = poison
    poisoned = replace(call, value=value)
    _, kept = brute_force(call, lambda row: {j for j, _ in sorted(row, key=lambda item: -item[1])[:2]})
    out, clean = TopK(k=2).attend(poisoned)[0], TopK(k=2).attend(call)[0]
    hit = kept[..., 3]
    assert bool(hit.any())
    assert bool((~hit[:, :, 4:]).any())
    assert not torch.isfinite(out[hit]).any()
    assert torch.equal(out[~hit], clean[~hit])


@pytest.mark.parametrize("method", [None, TopK(k=1), TopK(k=2), TopTheta(k=2)], ids=str)
def test_a_nan_key_spoils_the_rows_that_see_it(method: TopK | TopTheta | None) -> None:
    call = attention_inputs("causal")
    key = call.key.clone()
    key[:, :, 3] = torch.nan
    poisoned = replace(call, key=key)
    out = dense(poisoned) if method is None else method.attend(poisoned)[0]
    assert torch.isfinite(out[:, :, :3]).all()
    assert out[:, :, 3:].isnan().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_low_precision_inputs_stay_close_to_float64(dtype: torch.dtype, tolerance: float) -> None:
    call = attention_inputs("left", dtype=dtype, bias=True, sinks=True)
    out = dense(call)
    assert out.dtype == dtype
    expected, _ = brute_force(call, everything)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_scores_that_overflow_half_precision_do_not_overflow() -> None:
    call = attention_inputs("causal", dtype=torch.float16, width=8)
    call = replace(call, query=call.query * 200, key=call.key * 200)
    expected, _ = brute_force(call, everything)
    torch.testing.assert_close(dense(call).double(), expected, rtol=2e-3, atol=2e-3)


def test_float64_stays_float64() -> None:
    seen: list[torch.dtype] = []
    out, _ = attend_rows(attention_inputs("causal"), observer=lambda chunk: seen.append(chunk.scores.dtype))
    assert out.dtype == torch.float64
    assert seen == [torch.float64]


def test_the_observer_sees_every_row_once_before_selection() -> None:
    call = attention_inputs("left", queries=7, keys=7)
    assert isinstance(call.visibility, RowRanges)
    seen = torch.full((2, 4, 7, 7), torch.nan, dtype=torch.float64)
    counted = []

    def observe(chunk: Chunk) -> None:
        rows = seen[:, :, chunk.start : chunk.stop]
        assert rows.isnan().all()
        rows.fill_(-torch.inf)
        rows[..., chunk.low : chunk.high] = chunk.scores
        part = chunk.counted()
        assert part is not None
        counted.append(part)

    attend_rows(call, TopK(k=1).select, observer=observe, chunk_size=3)
    scores = torch.einsum("bghid,bgjd->bghij", call.query.view(2, 2, 2, 7, 3), call.key).reshape(2, 4, 7, 7) * 0.7
    expected = scores.masked_fill(~visible_keys(call.visibility, 2, 4, 7, 7), -torch.inf)
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat(counted, 1), call.visibility.counted)


def test_a_selection_cannot_bring_back_a_hidden_key() -> None:
    call = attention_inputs("left")
    out, counts = attend_rows(
        call, lambda chunk: Selection(torch.ones_like(chunk.scores, dtype=torch.bool)), count=True
    )
    assert torch.equal(out, dense(call))
    assert counts is not None
    assert torch.equal(counts.kept, call.visibility.lengths().expand_as(counts.kept))


@pytest.mark.parametrize("method", [None, TopK(k=2), TopTheta(k=2)], ids=["dense", "top-k", "top-theta"])
def test_gradients_are_right(method: TopK | TopTheta | None) -> None:
    call = attention_inputs("left", queries=4, keys=4, bias=True, sinks=True, softcap=3.0)
    leaves = [part.requires_grad_() for part in (call.query, call.key, call.value, call.bias, call.sinks)]

    def attend(*parts: Tensor) -> Tensor:
        names = ("query", "key", "value", "bias", "sinks")
        inputs = replace(call, **dict(zip(names, parts, strict=True)))
        return dense(inputs) if method is None else method.attend(inputs)[0]

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_of_rows_that_see_nothing_are_zero(sinks: bool) -> None:
    call = attention_inputs("left", sinks=sinks)
    call.query.requires_grad_()
    call.key.requires_grad_()
    TopK(k=2).attend(call)[0].sum().backward()
    assert call.query.grad is not None
    assert call.key.grad is not None
    assert torch.isfinite(call.query.grad).all()
    assert torch.isfinite(call.key.grad).all()
    assert not call.query.grad[1, :, :2].any()
    assert call.query.grad[1, :, 3:].any()


@pytest.mark.parametrize(
    "method",
    [
        TopK(k=8, protect_first=1, protect_recent=1),
        TopTheta(k=8),
        TopK(k=8, compensation="sdc+vmc"),
        TopTheta(k=8, compensation="sdc+vmc", v_mean="dropped"),
    ],
    ids=str,
)
@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_grows_with_the_square_of_the_length(method: TopK | TopTheta, padded: bool) -> None:
    length = 2600
    call = attention_inputs("causal", batch=1, heads=2, groups=1, queries=length, keys=length, dtype=torch.float32)
    if padded:
        first = torch.full((1, length), 7)
        call = replace(call, visibility=RowRanges(first, torch.maximum(first, call.visibility.last)))
    with TensorSizes() as sizes:
        method.attend(call, count=True)
    # One chunk of bounded size at a time, whatever the length.
    assert 0 < sizes.largest < length * length / 3


def test_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    TopK(k=2).attend(attention_inputs("left"), count=True)
    TopTheta(k=2).attend(attention_inputs("left"), count=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    call = attention_inputs("all", batch=1, heads=1, groups=1, queries=4000, keys=4)
    call = replace(call, query=call.query[:, :, :1].expand(-1, -1, 4000, -1))
    expected = dense(call)[0, 0, 0]
    torch.manual_seed(0)
    dropped = dense(replace(call, dropout=0.5))[0, 0]
    assert not torch.allclose(dropped[0], expected)
    torch.testing.assert_close(dropped.mean(0), expected, rtol=0, atol=0.1)


def test_inputs_are_left_as_they_were() -> None:
    call = attention_inputs("left", bias=True, sinks=True)
    parts = [call.query, call.key, call.value, call.bias, call.sinks]
    copies = [part.clone() for part in parts if part is not None]
    TopK(k=2, protect_first=1).attend(call, count=True)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True) if part is not None)
