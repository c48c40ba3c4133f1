"""Compensation: the weights and value means that go with a choice of keys, in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import AttentionInputs, Chunk, TopK, TopTheta, attend_rows
from hf_sparsify.patcher.methods.chunk import Selection
from hypothesis import given, settings
from hypothesis import strategies as st
from row_oracle import (
    COMPENSATED,
    EVERY_METHOD,
    MOST_COMPENSATED,
    THETA,
    Sparse,
    Table,
    named,
    row_by_row,
    run,
    sparse_methods,
    table_for,
)
from tiny_models import LAYOUTS, attention_inputs, visible_keys
from torch import Tensor

DENSE = TopK(keep=1.0)
WITH_SINKS = [False, True]


def attended(call: AttentionInputs, method: Sparse, **fields: Any) -> Tensor:
    return run(call, method, table_for(method, **fields)).output


def weights_of(call: AttentionInputs, method: Sparse) -> Tensor:
    """The weight of every value row: the output where the values are the rows of an identity."""
    batch, groups, keys = call.key.shape[:3]
    value = torch.eye(keys, dtype=call.value.dtype).expand(batch, groups, keys, keys)
    return attended(replace(call, value=value), method)


def equal_to_oracle(call: AttentionInputs, method: Sparse, tolerance: float = 1e-12) -> None:
    table = table_for(method)
    expected, found = row_by_row(call, method, table), run(call, method, table)
    assert torch.equal(found.kept, expected.kept)
    assert found.counts is not None
    assert torch.equal(found.counts.kept, expected.kept.sum(-1))
    assert found.output.dtype == call.value.dtype
    torch.testing.assert_close(found.output.double(), expected.output, rtol=tolerance, atol=tolerance)


EXTRAS: list[dict[str, Any]] = [
    {},
    {"heads": 4, "groups": 4, "bias": True, "softcap": 2.0},
    {"heads": 4, "groups": 1, "sinks": True},
    {"queries": 1, "keys": 9, "bias": True, "sinks": True},
]


@pytest.mark.parametrize("method", EVERY_METHOD, ids=named)
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_every_method_equals_its_definition(extra: dict[str, Any], method: Sparse) -> None:
    for layout in LAYOUTS:
        equal_to_oracle(attention_inputs(layout, **extra), method)


@pytest.mark.parametrize(
    "method", [m for fields in MOST_COMPENSATED for m in sparse_methods(**fields, protect_first=1)], ids=named
)
@pytest.mark.parametrize("change", [{}, {"k": None, "keep": 0.4}, {"protect_recent": 1}], ids=str)
def test_protected_keys_and_fractions_are_compensated_as_well(method: Sparse, change: dict[str, Any]) -> None:
    equal_to_oracle(attention_inputs("left", queries=8, keys=8, sinks=True), replace(method, **change))


@pytest.mark.parametrize("method", EVERY_METHOD, ids=named)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
def test_low_precision_inputs_choose_and_weigh_as_float64_would(
    method: Sparse, dtype: torch.dtype, tolerance: float
) -> None:
    equal_to_oracle(attention_inputs("left", dtype=dtype, bias=True), method, tolerance)


# Softmax-denominator compensation


@pytest.mark.parametrize("sinks", WITH_SINKS)
@pytest.mark.parametrize("method", sparse_methods(compensation="sdc"), ids=named)
def test_exact_weights_are_those_of_the_dense_softmax(method: Sparse, sinks: bool) -> None:
    for layout in LAYOUTS:
        if isinstance(method, TopTheta):
            method = replace(method, denominator="exact")
        call = attention_inputs(layout, sinks=sinks)
        dense, kept = weights_of(call, DENSE), run(call, method, table_for(method)).kept
        found = weights_of(call, method)
        torch.testing.assert_close(found, torch.where(kept, dense, 0), rtol=1e-12, atol=1e-12)
        assert float(found.sum(-1).max()) <= 1 + 1e-12
        if layout != "window" or isinstance(method, TopTheta):
            assert float(found.sum(-1).min()) < 0.95


@pytest.mark.parametrize("sinks", WITH_SINKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("placement", ["max-relative", "pre-softmax"])
def test_a_bound_from_the_threshold_never_gives_more_weight_than_the_exact_mass(
    layout: str, placement: str, sinks: bool
) -> None:
    call = attention_inputs(layout, sinks=sinks)
    exact = TopTheta(k=2, placement=placement, compensation="sdc")
    bound = replace(exact, denominator="exp-threshold")
    more, less = weights_of(call, exact), weights_of(call, bound)
    assert torch.equal(more > 0, less > 0)
    assert bool((less <= more + 1e-12).all())
    table = table_for(bound)
    lengths = call.visibility.lengths().expand(2, 4, 7)
    drops = lengths > run(call, bound, table).kept.sum(-1)
    assert bool((less.sum(-1) < more.sum(-1) - 1e-6)[drops].all())
    torch.testing.assert_close(less[~drops], more[~drops], rtol=0, atol=0)


@pytest.mark.parametrize("placement", ["max-relative", "pre-softmax"])
def test_a_bound_from_the_threshold_is_exact_where_all_dropped_keys_are_at_the_threshold(placement: str) -> None:
    call = attention_inputs("left", batch=2, heads=1, groups=1, queries=5, keys=8, width=1)
    key = torch.full_like(call.key, 0.5)
    key[:, :, 3] = 2.0
    call = replace(call, query=torch.ones_like(call.query), key=key, scale=1.0)
    theta = 0.5 if placement == "pre-softmax" else -1.5
    exact = TopTheta(k=1, placement=placement, compensation="sdc+vmc")
    bound = replace(exact, denominator="exp-threshold")

    class Flat(Table):
        def at(self, head: int, length: int) -> float:
            return theta

    table = Flat((theta,))
    found, expected = run(call, bound, table), run(call, exact, table)
    # The hidden future of a row takes no part in the bound: only what it sees is counted.
    assert found.kept.sum(-1).tolist()[0] == [[1, 1, 1, 1, 1]]
    torch.testing.assert_close(found.output, expected.output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("theta", [torch.inf, 300.0, 12.0])
@pytest.mark.parametrize("fields", MOST_COMPENSATED, ids=str)
@pytest.mark.parametrize("placement", ["max-relative", "pre-softmax"])
def test_a_threshold_above_every_score_bounds_the_mass_of_a_key_by_that_of_the_highest(
    placement: str, fields: dict[str, str], theta: float
) -> None:
    call = attention_inputs("left", dtype=torch.float32)
    method = TopTheta(k=2, placement=placement, denominator="exp-threshold", **fields)  # type: ignore[arg-type]
    table = Table((theta,) * 4)
    found = run(call, method, table)
    assert torch.isfinite(found.output).all()
    expected = row_by_row(call, method, table).output
    torch.testing.assert_close(found.output.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("v_mean", ["visible", "dropped"])
@pytest.mark.parametrize("placement", ["max-relative", "pre-softmax"])
def test_a_calibrated_mass_that_is_the_true_one_gives_the_exact_answer(placement: str, v_mean: str) -> None:
    """One row of every length: what calibration on this very call would have found."""
    call = attention_inputs("causal", batch=1, heads=2, groups=1, queries=8, keys=8)
    exact = TopTheta(k=2, placement=placement, compensation="sdc+vmc", v_mean=v_mean)
    theta = THETA[placement][:2]
    scores = torch.einsum("hid,jd->hij", call.query[0], call.key[0, 0]) * call.scale
    scores = scores.masked_fill(~torch.ones(8, 8, dtype=torch.bool).tril(), -torch.inf)
    dropped = (scores - scores.amax(-1, keepdim=True)).exp().masked_fill(run(call, exact, Table(theta)).kept[0], 0)

    class Calibrated(Table):
        def dropped_at(self, head: int, length: int) -> float:
            return float(dropped.sum(-1)[head, length - 1])

    found = run(call, replace(exact, denominator="offline"), Calibrated(theta))
    torch.testing.assert_close(found.output, run(call, exact, Table(theta)).output, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in EVERY_METHOD if named(m).endswith("offline")], ids=named)
def test_rows_without_a_calibrated_mass_use_the_exact_one(method: TopTheta) -> None:
    call = attention_inputs("left")
    missing = (5, 6, 7)
    table = Table(THETA[method.placement], without=missing)
    found = run(call, method, table)
    exact = run(call, replace(method, denominator="exact"), table)
    rows = torch.isin(call.visibility.lengths(), torch.tensor(missing)).expand(2, 4, 7)
    torch.testing.assert_close(found.output[rows], exact.output[rows], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found.output[~rows], exact.output[~rows])
    torch.testing.assert_close(found.output, row_by_row(call, method, table).output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sinks", WITH_SINKS)
def test_no_dropped_mass_is_no_compensation_and_weights_fall_as_it_grows(sinks: bool) -> None:
    call = attention_inputs("left", sinks=sinks)
    kept = run(call, TopK(k=2)).kept
    value = torch.eye(7, dtype=torch.float64).expand(2, 2, 7, 7)

    def weights(mass: float) -> Tensor:
        def select(chunk: Chunk) -> Selection:
            keep = kept[..., chunk.low : chunk.high]
            return Selection(keep, dropped_mass=lambda *_: torch.full(keep.shape[:-1], mass, dtype=torch.float64))

        return attend_rows(replace(call, value=value), select, compensation="sdc")[0]

    torch.testing.assert_close(weights(0.0), weights_of(call, TopK(k=2)), rtol=1e-12, atol=1e-12)
    for less, more in ((0.0, 0.1), (0.1, 1.0), (1.0, 5.0)):
        assert bool((weights(more) < weights(less))[kept].all())
    assert not weights(5.0)[~kept].any()


# V-mean compensation


@pytest.mark.parametrize("method", EVERY_METHOD, ids=named)
def test_constant_values_come_out_as_they_went_in(method: Sparse) -> None:
    for layout in LAYOUTS:
        call = attention_inputs(layout)
        constant = torch.tensor([1.5, -2.0, 0.0, 7.0], dtype=torch.float64)
        call = replace(call, value=constant.expand_as(call.value))
        sees = (call.visibility.lengths() > 0).expand(2, 4, 7)
        out = attended(call, method)
        assert not out[~sees].any()
        share = torch.ones(int(sees.sum()), 1, dtype=torch.float64)
        if method.compensation == "sdc":
            share = weights_of(call, method)[sees].sum(-1, keepdim=True)
        torch.testing.assert_close(out[sees], share * constant, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", EVERY_METHOD, ids=named)
def test_the_output_lies_in_the_convex_hull_of_the_visible_values(method: Sparse) -> None:
    """Weights are not negative, reach what is visible alone and sum to one at most; with V-mean to one."""
    for layout in LAYOUTS:
        call = attention_inputs(layout)
        found = weights_of(call, method)
        visible = visible_keys(call.visibility, 2, 4, 7, 7)
        assert float(found.min()) >= 0
        assert not found[~visible].any()
        total = found.sum(-1)[visible.any(-1)]
        assert float(total.max()) <= 1 + 1e-12
        if method.compensation != "sdc":
            torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-12)


def test_the_mean_of_dropped_values_is_exact_where_their_weights_are_equal_and_that_of_all_is_not() -> None:
    call = attention_inputs("causal", heads=2, groups=1, queries=8, keys=8, width=1)
    key = torch.zeros_like(call.key)
    key[:, :, 0] = 3.0
    call = replace(call, query=torch.ones_like(call.query), key=key)
    dense = attended(call, DENSE)
    dropped = TopK(k=1, compensation="sdc+vmc", v_mean="dropped")
    torch.testing.assert_close(attended(call, dropped), dense, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(attended(call, replace(dropped, v_mean="visible")), dense)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(["visible", "dropped"]))
def test_the_error_is_the_missing_mass_times_what_the_mean_is_off(seed: int, k: int, v_mean: str) -> None:
    call = attention_inputs("all", batch=1, queries=2, keys=9, seed=seed)
    method = TopK(k=k, compensation="sdc+vmc", v_mean=v_mean)
    kept, dense = run(call, method).kept, weights_of(call, DENSE)
    value = call.value.repeat_interleave(2, 1)
    lost = torch.where(kept, 0, dense)
    among = torch.ones_like(dense) if v_mean == "visible" else (~kept).double()
    mean = torch.einsum("bhij,bhje->bhie", among / among.sum(-1, keepdim=True).clamp(min=1), value)
    error = torch.einsum("bhij,bhje->bhie", lost, value) - lost.sum(-1, keepdim=True) * mean
    torch.testing.assert_close(
        attended(call, DENSE) - attended(call, method), error if k < 9 else torch.zeros_like(error), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("fields", COMPENSATED, ids=str)
def test_dense_rows_are_dense_to_the_bit_among_sparse_ones(fields: dict[str, str]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        call = attention_inputs("causal", dtype=dtype, sinks=True)
        dense = attend_rows(call)[0]
        for method in sparse_methods(**fields):
            out = attended(call, replace(method, k=4))
            assert torch.equal(out[:, :, :4], dense[:, :, :4])
            assert not torch.equal(out[:, :, 4:], dense[:, :, 4:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compensation": "vmc"}, "vmc alone changes nothing.*use sdc\\+vmc"),
        ({"compensation": "sdc-vmc"}, "compensation must be one of none, sdc, sdc\\+vmc, not 'sdc-vmc'"),
        ({"compensation": None}, "compensation must be"),
        ({"compensation": "sdc+vmc", "v_mean": "all"}, "v_mean must be visible or dropped, not 'all'"),
    ],
)
@pytest.mark.parametrize("method", [TopK, TopTheta])
def test_what_is_no_compensation_is_refused(method: type[Sparse], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method(k=4, **fields)
