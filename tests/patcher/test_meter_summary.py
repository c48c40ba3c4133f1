"""What the meter says of its counts: percentiles of rows, totals of modules, JSON and back."""

from __future__ import annotations

import json

import pytest
import torch
from hf_sparsify.patcher.meter import K_LIMIT, STEPS, Meter, ModuleMeter
from hf_sparsify.patcher.methods import RowCounts
from hypothesis import given, settings
from hypothesis import strategies as st


def counts_of(kept: list[int], heads: int = 1) -> RowCounts:
    rows = torch.tensor(kept).view(1, 1, -1).expand(1, heads, -1)
    none = torch.zeros_like(rows, dtype=torch.bool)
    return RowCounts(rows, none, none, rows[:, :1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_percentiles_are_a_row_of_that_rank_to_one_step(kept: list[int]) -> None:
    lengths = torch.full((1, 1, len(kept)), 50)
    meter = ModuleMeter()
    meter.add(counts_of(kept), lengths, torch.ones_like(lengths), None, steps=0)
    shares = sorted(value / 50 for value in kept)
    summary = meter.summary()
    for name, fraction in (("p5", 0.05), ("p95", 0.95)):
        rank = max(1, round(fraction * len(shares)))
        assert summary[f"long_kept_share_{name}"] == pytest.approx(shares[rank - 1], abs=1 / STEPS)
    assert summary["long_kept_share"] == pytest.approx(sum(kept) / (50 * len(kept)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 6)), min_size=1, max_size=60))
def test_percentiles_of_kept_per_k_are_a_row_of_that_rank_up_to_the_limit(rows: list[tuple[int, int]]) -> None:
    lengths = torch.full((1, 1, len(rows)), 60)
    meter = ModuleMeter()
    budget = torch.tensor([k for _, k in rows]).view(1, 1, -1)
    meter.add(counts_of([kept for kept, _ in rows]), lengths, budget, None, steps=0)
    ratios = sorted(min(kept / k, K_LIMIT) for kept, k in rows)
    summary = meter.summary()
    for name, fraction in (("p5", 0.05), ("p95", 0.95)):
        rank = max(1, round(fraction * len(ratios)))
        assert summary[f"kept_per_k_{name}"] == pytest.approx(ratios[rank - 1], abs=K_LIMIT / STEPS)
    assert summary["kept_per_k"] == pytest.approx(sum(kept for kept, _ in rows) / sum(k for _, k in rows))


def test_counts_come_back_from_json_and_add_up() -> None:
    meter = Meter(last_rows_are_steps=1)
    lengths = torch.tensor([[[10, 20]]])
    meter.add("a", counts_of([5, 7]), lengths, torch.tensor([[[5, 5]]]), None, (8, 8))
    back = Meter.from_dict(json.loads(json.dumps(meter.to_dict())))
    assert back.summary() == meter.summary()
    back.merge(meter)
    assert back.summary()["total"]["decode_kv_bytes_share"] == pytest.approx((20 + 7) / 40)
    assert back.modules["a"].long_rows == 4


def test_total_is_the_sum_of_the_modules_and_leaves_them_alone() -> None:
    meter = Meter()
    lengths = torch.tensor([[[10, 20]]])
    for name, kept in (("a", [5, 5]), ("b", [10, 20]), ("a", [1, 1])):
        meter.add(name, counts_of(kept), lengths, torch.tensor([[[5, 5]]]), None)
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
    meter.add("a", counts_of([5, 5]), lengths, torch.tensor([[[5, 5]]]), None)
    summary = meter.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["modules"]["a"]["kept_share"] == pytest.approx(1 / 3)
    assert summary["modules"]["a"]["kept_per_k"] == 1.0
    assert summary["modules"]["a"]["long_kept_share_p5"] == 0.25
    assert summary["modules"]["a"]["long_kept_share_p95"] == 0.5
