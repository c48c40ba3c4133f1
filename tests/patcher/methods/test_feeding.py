"""Compensated rows do not depend on how they are fed, nor on what they may not see."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges
from row_oracle import EVERY_METHOD, MOST_COMPENSATED, Rows, Sparse, named, part_of, run, sparse_methods, table_for
from tiny_models import LAYOUTS, attention_inputs, visible_keys
from torch import Tensor

QUERIES = 8
every_method = pytest.mark.parametrize("method", EVERY_METHOD, ids=named)
compensated = pytest.mark.parametrize(
    "method", [m for fields in MOST_COMPENSATED for m in sparse_methods(**fields)], ids=named
)


def feed(layout: str = "causal", **fields: Any) -> AttentionInputs:
    return attention_inputs(layout, queries=QUERIES, keys=QUERIES, bias=True, sinks=True, **fields)


def attended(call: AttentionInputs, method: Sparse, **options: Any) -> Rows:
    return run(call, method, table_for(method), **options)


def same_rows(found: Rows, whole: Rows, rows: slice, keys: slice) -> None:
    torch.testing.assert_close(found.output, whole.output[:, :, rows], rtol=1e-12, atol=1e-12)
    assert torch.equal(found.kept, whole.kept[:, :, rows, keys])
    assert found.counts is not None
    assert whole.counts is not None
    for name in ("kept", "fallback", "rescued", "v_rows"):
        assert torch.equal(getattr(found.counts, name), getattr(whole.counts, name)[:, :, rows]), name


@every_method
def test_a_prefilled_row_equals_a_decoding_step(method: Sparse) -> None:
    for layout in LAYOUTS:
        call = feed(layout)
        if layout == "all":
            call = replace(call, visibility=RowRanges.causal(QUERIES, QUERIES))
        whole = attended(call, method)
        for i in range(QUERIES):
            step = part_of(call, i, i + 1)
            same_rows(attended(step, method), whole, slice(i, i + 1), slice(step.key.shape[2]))


@every_method
def test_a_decoding_step_needs_no_more_than_its_window_in_the_cache(method: Sparse) -> None:
    call = feed()
    first = (call.visibility.last - 5).clamp(min=0)  # type: ignore[union-attr]
    call = replace(call, visibility=RowRanges(first, call.visibility.last))  # type: ignore[union-attr]
    whole = attended(call, method)
    for i in range(QUERIES):
        low = max(0, i - 4)
        same_rows(attended(part_of(call, i, i + 1, low), method), whole, slice(i, i + 1), slice(low, i + 1))


@compensated
def test_prefill_in_parts_equals_prefill_at_once(method: Sparse) -> None:
    for layout in ["causal", "left", "right", "window"]:
        call = feed(layout)
        whole = attended(call, method)
        for ends in ((2, 8), (3, 7, 8), (7, 8), (1, 2, 8)):
            for start, stop in itertools.pairwise((0, *ends)):
                same_rows(attended(part_of(call, start, stop), method), whole, slice(start, stop), slice(stop))


@every_method
def test_the_size_of_a_chunk_does_not_matter(method: Sparse) -> None:
    for layout in LAYOUTS:
        call = feed(layout)
        whole = attended(call, method, chunk_size=QUERIES)
        for size in (1, 3, 100):
            same_rows(attended(call, method, chunk_size=size), whole, slice(None), slice(None))


@pytest.mark.parametrize("side", ["left", "right"])
@every_method
def test_a_sequence_alone_equals_itself_in_a_padded_batch(side: str, method: Sparse) -> None:
    """The second sequence of the batch has two padding tokens, with other keys and values than the first."""
    call = feed(side)
    whole = attended(call, method)
    real = slice(2, None) if side == "left" else slice(0, QUERIES - 2)
    length = QUERIES - 2
    alone = replace(
        call,
        query=call.query[1:, :, real],
        key=call.key[1:, :, real],
        value=call.value[1:, :, real],
        bias=None if call.bias is None else call.bias[:, :, real, real],
        visibility=RowRanges.causal(length, length),
    )
    found = attended(alone, method)
    torch.testing.assert_close(found.output, whole.output[1:, :, real], rtol=1e-12, atol=1e-12)
    assert torch.equal(found.kept, whole.kept[1:, :, real, real])
    assert found.counts is not None
    assert whole.counts is not None
    assert torch.equal(found.counts.v_rows, whole.counts.v_rows[1:, :, real])


@every_method
def test_an_interval_or_its_boolean_mask_give_the_same(method: Sparse) -> None:
    call = feed("window")
    full = FullMask(visible_keys(call.visibility, 2, 1, QUERIES, QUERIES))
    same_rows(attended(replace(call, visibility=full), method), attended(call, method), slice(None), slice(None))


# What a row may not see


def nothing(seen: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(seen, torch.nan)


def infinite(seen: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(seen, torch.inf)


def another(seen: Tensor, generator: torch.Generator) -> Tensor:
    return 100 * torch.randn(seen.shape, generator=generator, dtype=seen.dtype)


@every_method
def test_hidden_keys_and_values_change_no_bit_of_a_row(method: Sparse) -> None:
    for layout in ["causal", "left", "right", "window", "full"]:
        call, generator = feed(layout), torch.Generator().manual_seed(5)
        clean = attended(call, method)
        visible = visible_keys(call.visibility, 2, 4, QUERIES, QUERIES)
        reached = 0
        for j, change in itertools.product((0, 3, QUERIES - 1), (nothing, infinite, another)):
            key, value = call.key.clone(), call.value.clone()
            key[:, :, j], value[:, :, j] = change(key[:, :, j], generator), change(value[:, :, j], generator)
            found = attended(replace(call, key=key, value=value), method)
            blind = ~visible[..., j]
            reached += int(blind.sum())
            assert torch.equal(found.output[blind], clean.output[blind])
            assert torch.equal(found.kept[blind], clean.kept[blind])
        assert reached > 0


@compensated
def test_v_mean_alone_reads_the_values_of_dropped_keys(method: Sparse) -> None:
    call = feed()
    clean = attended(call, method)
    dropped = ~clean.kept[:, :, :, 2] & (torch.arange(QUERIES) > 2)
    assert bool(dropped.any())
    value = call.value.clone()
    value[:, :, 2] = torch.nan
    found = attended(replace(call, value=value), method).output
    if method.compensation == "sdc+vmc":
        assert found[dropped].isnan().all()
    else:
        assert torch.equal(found[dropped], clean.output[dropped])


# Where the caller keeps the sum of values


def visible_sum(call: AttentionInputs) -> Tensor:
    """[B, G, E]: what a query sees of the values, added up one by one."""
    batch, groups, keys, width = call.value.shape
    visible = visible_keys(call.visibility, batch, groups, 1, keys)[:, :, 0]
    total = torch.zeros(batch, groups, width, dtype=torch.float64)
    for j in range(keys):
        total += call.value[:, :, j].double() * visible[..., j, None]
    return total


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@compensated
def test_a_sum_of_values_that_is_kept_gives_the_same_answer(
    method: Sparse, dtype: torch.dtype, tolerance: float
) -> None:
    for layout in ["all", "left", "right", "window", "full"]:
        for groups in (4, 2, 1):
            call = attention_inputs(layout, groups=groups, queries=1, keys=9, dtype=dtype, sinks=True)
            if isinstance(call.visibility, FullMask):
                call = replace(call, visibility=FullMask(call.visibility.visible[1:, :1]))
            without = attended(call, method)
            call = replace(call, value_sum=visible_sum(call).to(torch.promote_types(dtype, torch.float32)))
            found = attended(call, method)
            assert found.output.dtype == dtype
            assert torch.equal(found.kept, without.kept)
            torch.testing.assert_close(found.output, without.output, rtol=tolerance, atol=tolerance)


@compensated
def test_with_a_sum_of_values_no_dropped_row_is_read(method: Sparse) -> None:
    call = attention_inputs("all", batch=1, groups=1, queries=1, keys=24)
    call = replace(call, value_sum=visible_sum(call))
    clean = attended(call, method)
    unread = ~clean.kept.any(1)[0, 0]
    assert bool(unread.any())
    value = call.value.clone()
    value[:, :, unread] = torch.nan
    torch.testing.assert_close(
        attended(replace(call, value=value), method).output, clean.output, rtol=1e-12, atol=1e-12
    )


# Gradients


@pytest.mark.parametrize("k", [1, 2, 64], ids=["all sparse", "some sparse", "all dense"])
@compensated
def test_gradients_are_right(method: Sparse, k: int) -> None:
    call = attention_inputs(
        "causal", batch=1, heads=2, groups=1, queries=4, keys=4, width=2, softcap=3.0, bias=True, sinks=True
    )
    names = ("query", "key", "value", "bias", "sinks")
    leaves = [getattr(call, name).requires_grad_() for name in names]
    method = replace(method, k=k)

    def attend(*parts: Tensor) -> Tensor:
        inputs = replace(call, **dict(zip(names, parts, strict=True)))  # type: ignore[arg-type]
        return run(inputs, method, table_for(method, heads=2)).output

    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)
