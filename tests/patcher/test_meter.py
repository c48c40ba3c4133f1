"""What was kept, counted by hand and by the meter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.meter import K_LIMIT, STEPS, Meter, ModuleMeter
from hf_sparsify.patcher.methods import FullMask, RowCounts, RowRanges, TopK, TopTheta, attend_rows
from hf_sparsify.patcher.methods.chunk import Selection
from tiny_models import LAYOUTS, attention_inputs, brute_force, highest, visible_keys
from torch import Tensor

K = 2


def measured(layout: str, queries: int = 6, keys: int = 6, method: TopK | TopTheta | None = None) -> ModuleMeter:
    method = method or TopK(k=K)
    call = attention_inputs(layout, queries=queries, keys=keys)
    _, counts = method.attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = ModuleMeter()
    meter.add(counts, lengths, method.rows_k(lengths), call.visibility.counted, steps=int(queries == 1))
    return meter


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_equal_a_loop_over_the_mask(layout: str) -> None:
    call = attention_inputs(layout, queries=6, keys=6)
    _, kept = brute_force(call, highest(K))
    visible = visible_keys(call.visibility, 2, 4, 6, 6)
    counted = call.visibility.counted
    expected = ModuleMeter(head_visible=[0] * 4, head_kept=[0] * 4)
    for b in range(2):
        for h in range(4):
            for i in range(6):
                length, keeps = int(visible[b, h, i].sum()), int(kept[b, h, i].sum())
                if length == 0 or (counted is not None and not counted[b, i]):
                    continue
                expected.rows += 1
                expected.visible += length
                expected.kept += keeps
                if length > K:
                    expected.long_rows += 1
                    expected.long_budget += K
                    expected.long_visible += length
                    expected.long_kept += keeps
                    expected.head_visible[h] += length
                    expected.head_kept[h] += keeps
                    expected.long_shares[math.ceil(keeps / length * STEPS - 1e-9)] += 1
                    expected.long_per_k[math.ceil(keeps / K / K_LIMIT * STEPS - 1e-9)] += 1
    meter = measured(layout)
    assert 0 < meter.kept < meter.visible
    for name, value in vars(expected).items():
        found = getattr(meter, name)
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, name


def test_padding_queries_are_not_counted() -> None:
    counted = torch.ones(2, 6, dtype=torch.bool)
    counted[1, 4:] = False
    call = attention_inputs("all", queries=6, keys=6)
    _, counts = TopK(k=K).attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = ModuleMeter()
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), counted, steps=0)
    assert meter.rows == 4 * (6 + 4)
    assert meter.visible == 4 * 10 * 6
    assert meter.kept == 4 * 10 * K


@pytest.mark.parametrize("layout", ["causal", "left", "full"])
def test_v_rows_are_the_union_of_a_group(layout: str) -> None:
    call = attention_inputs(layout, queries=1, keys=9)
    if isinstance(call.visibility, FullMask):
        call = replace(call, visibility=FullMask(call.visibility.visible[:, 1:2]))
    _, kept = brute_force(call, highest(K))
    visible = visible_keys(call.visibility, 2, 4, 1, 9)
    _, counts = TopK(k=K).attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = ModuleMeter()
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), None, steps=1)
    assert meter.v_rows == int(visible.view(2, 2, 2, 9).any(2).sum())
    assert meter.v_rows_kept == int(kept.view(2, 2, 2, 9).any(2).sum())
    per_head = kept.view(2, 2, 2, 9).sum(-1)
    assert int(per_head.amax(-1).sum()) < meter.v_rows_kept < int(per_head.sum())


def test_v_rows_are_counted_only_while_decoding() -> None:
    assert measured("causal", queries=6).v_rows == 0
    call = attention_inputs("causal", queries=1, keys=9)
    _, counts = TopK(k=K).attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = ModuleMeter()
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), None, steps=0)
    assert meter.v_rows == 0
    assert meter.rows == 8


def test_v_rows_of_a_padded_row_count_what_it_sees() -> None:
    first, last = torch.tensor([[0], [4]]), torch.tensor([[9], [9]])
    call = replace(attention_inputs(queries=1, keys=9), visibility=RowRanges(first, last))
    _, counts = TopK(k=9).attend(call, count=True)
    assert counts is not None
    meter = ModuleMeter()
    lengths = call.visibility.lengths()
    meter.add(counts, lengths, lengths, None, steps=1)
    assert meter.v_rows == meter.v_rows_kept == 2 * (9 + 5)


def test_sequences_that_have_ended_are_not_counted() -> None:
    call = attention_inputs("causal", queries=1, keys=9)
    _, counts = TopK(k=K).attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = Meter()
    for active in (torch.tensor([True, False]), torch.tensor([False, False])):
        meter.active = active
        meter.add("m", counts, lengths, TopK(k=K).rows_k(lengths), None)
    assert meter.modules["m"].rows == 4
    assert meter.modules["m"].kept == 4 * K
    assert meter.modules["m"].v_rows == 2 * 9
    meter.active = torch.tensor([False, True])
    meter.add("m", counts, lengths, TopK(k=K).rows_k(lengths), torch.tensor([[True], [False]]))
    assert meter.modules["m"].rows == 4


def test_fallback_and_rescued_rows() -> None:
    nothing = measured("left")
    assert (nothing.fallback_rows, nothing.rescued_rows) == (0, 0)
    without = measured("left", method=TopTheta(k=K))
    assert without.fallback_rows == without.long_rows > 0


def toy_masks(queries: int) -> tuple[Tensor, Tensor]:
    """Which of six keys two sequences with two heads see and keep, bool [2, 2, q, 6]: the first sees two keys less."""
    generator = torch.Generator().manual_seed(queries)
    visible = torch.ones(2, 2, queries, 6, dtype=torch.bool)
    visible[0, :, :, :2] = False
    return visible, visible & (torch.rand(2, 2, queries, 6, generator=generator) < 0.4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_toy_masks_counted_by_hand(groups: int, queries: int, steps: int) -> None:
    visible, kept = toy_masks(queries)
    call = attention_inputs("all", heads=2, groups=groups, queries=queries, keys=6)
    call = replace(call, visibility=FullMask(visible[:, :1]))
    _, counts = attend_rows(call, lambda chunk: Selection(kept), count=True)
    assert counts is not None
    meter = Meter(last_rows_are_steps=steps)
    rows_k = torch.full((1, 1, queries), K)
    meter.add("m", counts, visible[:, :1].sum(-1), rows_k, None, row_bytes=(10, 14, 3))
    module = meter.modules["m"]
    elements = v_rows = v_kept = 0
    popularity = [0] * 6
    decoding = range(queries)[-steps:] if steps else range(queries if queries == 1 else 0)
    for b in range(2):
        for i in range(queries):
            for h in range(2):
                for j in range(6):
                    elements += int(kept[b, h, i, j])
                    popularity[j] += int(kept[b, h, i, j])
            for g in range(groups if i in decoding else 0):
                heads = range(g * 2 // groups, (g + 1) * 2 // groups)
                union = {j for h in heads for j in range(6) if kept[b, h, i, j]}
                per_head = [sum(bool(kept[b, h, i, j]) for j in range(6)) for h in heads]
                assert max(per_head) <= len(union) <= sum(per_head)
                assert int(counts.v_rows[b, g, i]) == len(union)
                v_kept += len(union)
                v_rows += 4 if b == 0 else 6
    assert module.kept == module.long_kept == elements == sum(popularity)
    assert module.visible == 2 * queries * (4 + 6)
    assert module.long_budget == 2 * 2 * queries * K
    assert (module.v_rows, module.v_rows_kept) == (v_rows, v_kept)
    assert (module.key_bytes, module.value_bytes, module.value_bytes_kept) == (10 * v_rows, 14 * v_rows, 14 * v_kept)
    summary = module.summary()
    share = (10 * v_rows + 14 * v_kept) / (24 * v_rows) if v_rows else None
    assert summary["decode_kv_bytes_share"] == (pytest.approx(share) if share else None)
    assert summary["decode_v_rows_share"] == (pytest.approx(v_kept / v_rows) if v_rows else None)
    assert module.key_bytes_read == module.key_bytes


def test_keys_that_were_read_rounded_first_count_as_that() -> None:
    none = torch.zeros(1, 4, 1, dtype=torch.bool)
    v_rows, k_rows = torch.tensor([[[5], [6]]]), torch.tensor([[[8], [9]]])
    counts = RowCounts(torch.full((1, 4, 1), 3), none, none, v_rows, k_rows)
    meter = Meter()
    lengths = torch.full((1, 1, 1), 100)
    meter.add("m", counts, lengths, torch.full((1, 1, 1), 4), None, row_bytes=(256, 128, 72))
    module = meter.modules["m"]
    assert (module.key_bytes, module.key_bytes_read) == (2 * 100 * 256, 2 * 100 * 72 + 17 * 256)
    share = (2 * 100 * 72 + 17 * 256 + 11 * 128) / (2 * 100 * (256 + 128))
    assert module.summary()["decode_kv_bytes_share"] == pytest.approx(share)


@pytest.mark.parametrize("method", [TopK(k=K), TopTheta(k=K)], ids=["top-k", "top-theta"])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_last_rows_count_as_the_steps_that_they_equal(method: TopK | TopTheta, last: int) -> None:
    call = attention_inputs("causal", queries=7, keys=7)
    whole, single = Meter(last_rows_are_steps=last), Meter()

    def count(meter: Meter, start: int, stop: int) -> None:
        seen = RowRanges.causal(stop - start, stop)
        part = replace(
            call,
            query=call.query[:, :, start:stop],
            key=call.key[:, :, :stop],
            value=call.value[:, :, :stop],
            visibility=seen,
        )
        _, counts = method.attend(part, count=True)
        assert counts is not None
        meter.add("m", counts, seen.lengths(), method.rows_k(seen.lengths()), None, (3, 5))

    count(whole, 0, 7)
    if last < 7:
        count(single, 0, 7 - last)
    for i in range(7 - last, 7):
        count(single, i, i + 1)
    assert whole.modules["m"].v_rows == 2 * 2 * sum(range(8 - last, 8))
    assert whole.to_dict() == single.to_dict()
