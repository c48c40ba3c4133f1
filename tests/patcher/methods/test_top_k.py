"""Top-k attention against a brute-force answer, and the selection against sorting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import METHODS, FullMask, TopK, attend_rows, method_from_dict, method_to_dict
from hf_sparsify.patcher.methods.top_k import GROUPED_FROM, keep_highest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LAYOUTS, attention_inputs, brute_force, everything, highest, visible_keys
from torch import Tensor

EXTRAS: list[dict[str, Any]] = [
    {},
    {"heads": 2, "groups": 2},
    {"heads": 3, "groups": 1},
    {"bias": True},
    {"softcap": 2.0},
    {"sinks": True},
    {"bias": True, "softcap": 1.5, "sinks": True},
    {"queries": 1, "keys": 9},
    {"queries": 3, "keys": 9},
]


def keep_by_sorting(scores: Tensor, rows_k: Tensor) -> Tensor:
    """Exactly k of what is visible, the highest, the earliest among equals."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[-1]) < rows_k.unsqueeze(-1)
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, chosen.expand_as(scores))
    return keep & (scores != -torch.inf)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_brute_force(layout: str, extra: dict[str, Any]) -> None:
    call = attention_inputs(layout, **extra)
    expected, kept = brute_force(call, highest(3))
    out, counts = TopK(k=3).attend(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))
    assert int(counts.kept.max()) == 3
    if layout != "window":  # a window of 3 keys has nothing to drop
        assert not torch.allclose(out, attend_rows(call)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fraction_keeps_its_share_of_every_row(layout: str) -> None:
    call = attention_inputs(layout, keys=10)
    expected, kept = brute_force(call, lambda row: highest(-(-len(row) * 3 // 10))(row))
    out, counts = TopK(keep=0.3).attend(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))


@pytest.mark.parametrize("extra", [{}, {"sinks": True, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [TopK(k=7), TopK(k=10**9), TopK(keep=1.0)], ids=lambda method: method.describe())
def test_a_budget_of_the_whole_row_is_dense(layout: str, method: TopK, extra: dict[str, Any]) -> None:
    call = attention_inputs(layout, **extra)
    assert torch.equal(method.attend(call)[0], attend_rows(call)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "method",
    [TopK(k=4, protect_first=1, protect_recent=2), TopK(k=2, protect_first=2), TopK(k=3, protect_recent=1)],
    ids=["first and recent", "first only", "recent"],
)
def test_protected_keys_are_kept_within_k(layout: str, method: TopK) -> None:
    call = attention_inputs(layout, queries=8, keys=8)

    def choose(row: list[tuple[int, float]]) -> set[int]:
        sure = {j for j, _ in row[: method.protect_first] + row[max(0, len(row) - method.protect_recent) :]}
        rest = [item for item in row if item[0] not in sure]
        assert method.k is not None
        return sure | highest(method.k - len(sure))(rest)

    expected, kept = brute_force(call, choose)
    out, counts = method.attend(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert torch.equal(counts.kept, kept.sum(-1))


def test_protection_changes_the_answer() -> None:
    call = attention_inputs("causal", queries=8, keys=8)
    assert not torch.allclose(TopK(k=2).attend(call)[0], TopK(k=2, protect_recent=1).attend(call)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_k_under_ties_the_earliest_first(layout: str) -> None:
    call = attention_inputs(layout, queries=7, keys=9)
    call = replace(call, key=torch.ones_like(call.key))
    expected, _ = brute_force(call, lambda row: {j for j, _ in row[:3]})
    out, counts = TopK(k=3).attend(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    lengths = call.visibility.lengths().expand_as(counts.kept)
    assert torch.equal(counts.kept, lengths.clamp(max=3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0]), min_size=7, max_size=7), min_size=3,
                max_size=3), st.lists(st.integers(0, 8), min_size=3, max_size=3))  # fmt: skip
def test_selection_equals_stable_sorting(rows: list[list[float]], per_row_k: list[int]) -> None:
    scores = torch.tensor(rows).view(1, 1, 3, 7)
    rows_k = torch.minimum(torch.tensor(per_row_k).view(1, 1, 3), (scores != -torch.inf).sum(-1))
    assert torch.equal(keep_highest(scores, rows_k), keep_by_sorting(scores, rows_k))


@pytest.mark.parametrize("width", [GROUPED_FROM - 1, GROUPED_FROM, GROUPED_FROM + 5, 8192, 8211])
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("ties", [False, True])
def test_grouped_selection_equals_stable_sorting(width: int, k: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(width + k)
    scores = torch.randn(1, 2, 3, width, generator=generator)
    if ties:
        scores = scores.round()
    scores[:, :, 1, width // 3 :] = -torch.inf
    scores[:, 0, 2] = -torch.inf
    # The highest at the very end of the row, where no group reaches.
    scores[:, 1, 2, -2:] = 9.0
    rows_k = torch.tensor([[[k, max(1, k - 3), k], [k, 1, k]]])
    visible = (scores != -torch.inf).sum(-1)
    rows_k = torch.minimum(rows_k, visible)
    assert torch.equal(keep_highest(scores, rows_k), keep_by_sorting(scores, rows_k))


def test_grouped_attention_equals_a_full_sort() -> None:
    width = GROUPED_FROM + 37
    call = attention_inputs("causal", batch=1, queries=3, keys=width, seed=3)
    scores = torch.einsum("bghid,bgjd->bghij", call.query.view(1, 2, 2, 3, 3), call.key).reshape(1, 4, 3, width) * 0.7
    visible = visible_keys(call.visibility, 1, 1, 3, width)
    scores = scores.masked_fill(~visible, -torch.inf)
    keep = keep_by_sorting(scores, torch.full((1, 4, 3), 20))
    weights = scores.masked_fill(~keep, -torch.inf).softmax(-1)
    expected = torch.matmul(weights, call.value.repeat_interleave(2, 1))
    out, counts = TopK(k=20).attend(call, count=True)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert counts is not None
    assert bool((counts.kept == 20).all())


@pytest.mark.parametrize("extra", [{}, {"bias": True}], ids=str)
def test_the_same_mask_as_intervals_or_in_full_gives_the_same(extra: dict[str, Any]) -> None:
    call = attention_inputs("window", queries=7, keys=9, **extra)
    full = FullMask(visible_keys(call.visibility, 2, 1, 7, 9), None)
    method = TopK(k=2, protect_recent=1)
    torch.testing.assert_close(
        method.attend(replace(call, visibility=full))[0], method.attend(call)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("queries", [1, 4])
def test_v_rows_of_every_query_are_the_union_over_the_heads_of_a_group(queries: int) -> None:
    call = attention_inputs("left", queries=queries, keys=9)
    _, kept = brute_force(call, highest(3))
    _, counts = TopK(k=3).attend(call, count=True)
    assert counts is not None
    assert torch.equal(counts.v_rows, kept.view(2, 2, 2, queries, 9).any(2).sum(-1))
    assert bool((counts.v_rows > 3).any())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_low_precision_inputs(dtype: torch.dtype, tolerance: float) -> None:
    call = attention_inputs("left", dtype=dtype)
    out, _ = TopK(k=3).attend(call)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), brute_force(call, highest(3))[0], rtol=tolerance, atol=tolerance)


def test_rows_do_not_depend_on_how_they_are_fed() -> None:
    call = attention_inputs("causal", queries=9, keys=9)
    method = TopK(k=3, protect_first=1)
    whole, _ = method.attend(call)
    for i in range(9):
        row = attention_inputs("causal", queries=1, keys=i + 1)
        part = replace(
            row, query=call.query[:, :, i : i + 1], key=call.key[:, :, : i + 1], value=call.value[:, :, : i + 1]
        )
        torch.testing.assert_close(method.attend(part)[0], whole[:, :, i : i + 1], rtol=1e-12, atol=1e-12)


def test_brute_force_itself_equals_torch() -> None:
    call = attention_inputs("causal")
    expected = torch.nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, is_causal=True, scale=call.scale, enable_gqa=True
    )
    torch.testing.assert_close(brute_force(call, everything)[0], expected, rtol=1e-12, atol=1e-12)


def test_methods_are_known_by_name_and_come_back_from_their_recipe_entry() -> None:
    method = TopK(k=5, protect_first=2, compensation="sdc+vmc", v_mean="dropped")
    assert METHODS["top-k"] is TopK
    assert method_to_dict(method) == {
        "method": "top-k",
        "k": 5,
        "protect_first": 2,
        "protect_recent": 0,
        "compensation": "sdc+vmc",
        "v_mean": "dropped",
        "min_length": 0,
        "denominator": "exact",
    }
    assert method_from_dict(method_to_dict(method)) == method
