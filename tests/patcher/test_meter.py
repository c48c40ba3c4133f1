"""What was kept, counted by hand and by the meter."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.meter import STEPS, Meter, ModuleMeter
from hf_sparsify.patcher.methods import FullMask, RowCounts, RowRanges, TopK, TopTheta
from hypothesis import given, settings
from hypothesis import strategies as st
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
    meter.add(counts, lengths, method.rows_k(lengths), call.visibility.counted, decoding=queries == 1)
    return meter


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_equal_a_loop_over_the_mask(layout: str) -> None:
    call = attention_inputs(layout, queries=6, keys=6)
    _, kept = brute_force(call, highest(K))
    visible = visible_keys(call.visibility, 2, 4, 6, 6)
    counted = call.visibility.counted
    expected = ModuleMeter()
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
                    expected.long_shares[math.ceil(keeps / length * STEPS - 1e-9)] += 1
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
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), counted, decoding=False)
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
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), None, decoding=True)
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
    meter.add(counts, lengths, TopK(k=K).rows_k(lengths), None, decoding=False)
    assert meter.v_rows == 0
    assert meter.rows == 8


def test_v_rows_of_a_padded_row_count_what_it_sees() -> None:
    first, last = torch.tensor([[0], [4]]), torch.tensor([[9], [9]])
    call = replace(attention_inputs(queries=1, keys=9), visibility=RowRanges(first, last))
    _, counts = TopK(k=9).attend(call, count=True)
    assert counts is not None
    meter = ModuleMeter()
    lengths = call.visibility.lengths()
    meter.add(counts, lengths, lengths, None, decoding=True)
    assert meter.v_rows == meter.v_rows_kept == 2 * (9 + 5)


def test_sequences_that_have_ended_are_not_counted() -> None:
    call = attention_inputs("causal", queries=1, keys=9)
    _, counts = TopK(k=K).attend(call, count=True)
    assert counts is not None
    lengths = call.visibility.lengths()
    meter = Meter()
    for active in (torch.tensor([True, False]), torch.tensor([False, False])):
        meter.active = active
        meter.add("m", counts, lengths, TopK(k=K).rows_k(lengths), None, decoding=True)
    assert meter.modules["m"].rows == 4
    assert meter.modules["m"].kept == 4 * K
    assert meter.modules["m"].v_rows == 2 * 9
    meter.active = torch.tensor([False, True])
    meter.add("m", counts, lengths, TopK(k=K).rows_k(lengths), torch.tensor([[True], [False]]), decoding=True)
    assert meter.modules["m"].rows == 4


def test_fallback_and_rescued_rows() -> None:
    nothing = measured("left")
    assert (nothing.fallback_rows, nothing.rescued_rows) == (0, 0)
    without = measured("left", method=TopTheta(k=K))
    assert without.fallback_rows == without.long_rows > 0


def counts_of(kept: list[int], heads: int = 1) -> RowCounts:
    rows = torch.tensor(kept).view(1, 1, -1).expand(1, heads, -1)
    none = torch.zeros_like(rows, dtype=torch.bool)
    return RowCounts(rows, none, none, None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_percentiles_are_a_row_of_that_rank_to_one_step(kept: list[int]) -> None:
    lengths = torch.full((1, 1, len(kept)), 50)
    meter = ModuleMeter()
    meter.add(counts_of(kept), lengths, torch.ones_like(lengths), None, decoding=False)
    shares = sorted(value / 50 for value in kept)
    summary = meter.summary()
    for name, fraction in (("p5", 0.05), ("p95", 0.95)):
        rank = max(1, round(fraction * len(shares)))
        assert summary[f"long_kept_share_{name}"] == pytest.approx(shares[rank - 1], abs=1 / STEPS)
    assert summary["long_kept_share"] == pytest.approx(sum(kept) / (50 * len(kept)))


def test_total_is_the_sum_of_the_modules_and_leaves_them_alone() -> None:
    meter = Meter()
    lengths = torch.tensor([[[10, 20]]])
    for name, kept in (("a", [5, 5]), ("b", [10, 20]), ("a", [1, 1])):
        meter.add(name, counts_of(kept), lengths, torch.tensor([[[5, 5]]]), None, decoding=False)
    total = meter.total()
    assert list(meter.modules) == ["a", "b"]
    assert (total.kept, total.visible, total.rows) == (42, 90, 6)
    assert (meter.modules["a"].kept, meter.modules["b"].kept) == (12, 30)
    assert int(meter.modules["a"].long_shares.sum()) == 4
    assert int(total.long_shares.sum()) == 6


def test_summary_is_json_and_has_no_share_of_nothing() -> None:
    empty = Meter().summary()
    assert json.loads(json.dumps(empty)) == empty
    assert empty["total"]["kept_share"] is None
    assert empty["total"]["decode_v_rows_share_p95"] is None
    meter = Meter()
    lengths = torch.tensor([[[10, 20]]])
    meter.add("a", counts_of([5, 5]), lengths, torch.tensor([[[5, 5]]]), None, decoding=False)
    summary = meter.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["modules"]["a"]["kept_share"] == pytest.approx(1 / 3)
    assert summary["modules"]["a"]["kept_per_k"] == 1.0
    assert summary["modules"]["a"]["long_kept_share_p5"] == 0.25
    assert summary["modules"]["a"]["long_kept_share_p95"] == 0.5
