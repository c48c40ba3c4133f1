"""Top-k and top-theta by Triton against the torch definition in float64 (see triton_row_problems)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from hf_sparsify.patcher.kernels import triton_means, triton_row_places, triton_row_work, triton_rows
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from row_oracle import named
from tiny_models import LAYOUTS
from triton_interpreter import mend_products
from triton_row_problems import attended, check, problem, table, whole

# Every row has a threshold for sure: no scores are written down.
FUSED = [
    TopTheta(k=5),
    TopTheta(k=5, placement="max-relative", compensation="sdc"),
    TopTheta(k=5, placement="pre-softmax", compensation="sdc+vmc"),
    TopTheta(keep=0.3, compensation="sdc+vmc", v_mean="dropped", min_length=20),
    TopTheta(k=5, placement="pre-softmax", compensation="sdc", denominator="exp-threshold"),
    TopTheta(k=5, placement="pre-softmax", compensation="sdc+vmc", v_mean="dropped", denominator="offline"),
    TopTheta(k=5, placement="max-relative", compensation="sdc+vmc", denominator="offline"),
]
SCORED = [
    TopK(k=5),
    TopK(keep=0.3, compensation="sdc+vmc", min_length=9),
    TopK(k=5, compensation="sdc+vmc", v_mean="dropped"),
    TopTheta(k=5, min_keep=4, compensation="sdc"),
    TopTheta(k=5, placement="pre-softmax", min_keep=2, compensation="sdc+vmc", denominator="exp-threshold"),
]
POST, TOP = FUSED[0], SCORED[0]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are short here: select_rows takes them in several steps all the same."""
    monkeypatch.setattr(triton_row_work, "SELECT_KEYS", 32)


# Every method with two layouts, in turn, and with any mask.
IN_TURN = [(LAYOUTS[(number + more) % 5], method) for number, method in enumerate(FUSED) for more in (0, 2)]
MASKED = [("full", method) for method in FUSED]


@pytest.mark.parametrize(("layout", "method"), IN_TURN + MASKED, ids=named)
def test_thresholds_like_the_definition(layout: str, method: TopTheta) -> None:
    inputs = problem(layout)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize(
    ("layout", "method"), [*zip(("causal", "left", "right", "window", "all"), SCORED, strict=True), ("full", TOP)]
)
def test_exact_selection_like_the_definition(layout: str, method: TopK | TopTheta) -> None:
    inputs = problem(layout, group=1)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("method", [*FUSED[:5], SCORED[1], SCORED[3]], ids=named)
def test_a_decoding_step_like_the_definition(method: TopK | TopTheta) -> None:
    """It counts V rows too."""
    inputs = problem("left", queries=1, group=3)
    check(inputs, method, table(inputs, method))


MEANS = (SCORED[1], SCORED[2])


@pytest.mark.parametrize("method", MEANS, ids=named)
@pytest.mark.parametrize(("heads", "queries"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_means_under_a_mask(method: TopK, heads: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all heads, or each its own; a value that is not finite spoils the rows that see it."""
    monkeypatch.setattr(triton_means, "MASK_ELEMENTS", 2 * 37 * heads)  # a row of it at a time
    inputs = problem(groups=2, queries=queries)
    mask = torch.rand(2, heads, queries, 37, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 3] = mask[..., 20] = False
    inputs.value[:, :, 3] = torch.nan
    check(replace(inputs, visibility=FullMask(mask)), method)
    mask[0, 0, -1, 20] = True
    inputs.value[0, :, 20] = torch.inf
    out, _ = attended(replace(inputs, visibility=FullMask(mask)), method)
    spoilt = ~out.isfinite().all(-1)
    assert torch.equal(spoilt, mask[..., 20].expand_as(spoilt))


@pytest.mark.parametrize("length", [3, 30, 300])
def test_rows_without_a_threshold_use_top_k(length: int) -> None:
    """The thresholds begin at 30 keys: whatever a row has, the table is not said to have one for it."""
    method = TopTheta(k=5, compensation="sdc+vmc", placement="max-relative", denominator="offline")
    inputs = problem("causal", batch=1, group=1, keys=max(length, 4))
    check(inputs, method, table(inputs, method, shortest=30))


def test_no_table_at_all_is_top_k() -> None:
    check(problem(), TopTheta(k=5, compensation="sdc"))


@pytest.mark.parametrize("placement", ["post-softmax", "max-relative", "pre-softmax"])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_row_that_would_keep_nothing_keeps_its_best_key(placement: str, queries: int) -> None:
    method = TopTheta(k=5, placement=placement, compensation="sdc+vmc", v_mean="dropped")
    inputs = problem(queries=queries)
    thresholds = table(inputs, method)
    assert thresholds is not None
    thresholds.theta.fill_(100)
    check(inputs, method, thresholds)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (POST, {"group": 1, "groups": 3}),
        (TOP, {"group": 3, "groups": 2, "batch": 1, "queries": 1}),
        (POST, {"group": 8, "batch": 1, "queries": 1}),
        (POST, {"width": 40, "value_width": 80}),
        (TOP, {"width": 64, "value_width": 8, "group": 1}),
        (POST, {"width": 128, "value_width": 128, "queries": 1}),
        (POST, {"dtype": torch.bfloat16}),
        (TOP, {"dtype": torch.bfloat16, "group": 1}),
        (POST, {"dtype": torch.float16, "queries": 1}),
        (POST, {"softcap": 4.0}),
        (POST, {"sinks": torch.tensor([0.5, 1.5])}),
        (TOP, {"sinks": torch.tensor([0.5]), "softcap": 4.0, "group": 1}),
        (POST, {"queries": 40, "keys": 9, "layout": "all", "batch": 1, "group": 3}),
    ],
    ids=named,
)
def test_shapes_dtypes_and_extras(
    method: TopK | TopTheta, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mend_products(monkeypatch)
    inputs = problem(**changes)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("method", [FUSED[2], TOP], ids=named)
@pytest.mark.parametrize("by_distance", [False, True])
def test_a_position_bias(method: TopK | TopTheta, by_distance: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (1, 2, 3 + 36) if by_distance else (1, 2, 3, 37)
    numbers = whole(*shape, generator=generator)
    bias = DistanceBias(numbers, 3) if by_distance else numbers.to(torch.bfloat16)
    if not by_distance and method.compensation == "sdc+vmc":
        method = replace(method, compensation="sdc")
    inputs = problem(queries=3, batch=1, bias=bias)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("method", [POST, TOP], ids=named)
def test_parts_of_larger_tensors(method: TopK | TopTheta) -> None:
    plain = problem()
    room = torch.full((2, 2, 1, 50, 20), torch.nan)
    room[0, :, :, :37, :16], room[1, :, :, :37, :16] = plain.key, plain.value
    query = plain.query.transpose(1, 2).contiguous().transpose(1, 2)
    key = room[0, :, :, :37, :16].transpose(2, 3).contiguous().transpose(2, 3)
    inputs = AttentionInputs(query, key, room[1, :, :, :37, :16], plain.visibility, scale=0.25)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("method", [*FUSED[1:6], *SCORED[2:4]], ids=named)
def test_keys_shared_among_programs(method: TopK | TopTheta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_row_places, "SPLIT_KEYS", 40)
    inputs = problem("left", group=1, keys=100)
    assert (
        triton_row_work.RowKernels(
            inputs, method, table(inputs, method), inputs.query, scored=True, count=False
        )._splits(2)
        == 3
    )
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("layout", ["left", "window", "full"])
def test_the_mean_of_a_step_is_shared_among_programs(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_row_places, "SPLIT_KEYS", 7)
    monkeypatch.setattr(triton_means, "ROWS", 16)
    inputs = problem(layout, queries=1, groups=2, value_width=10)
    if layout == "full":
        inputs = replace(inputs, visibility=FullMask(inputs.visibility.visible[:, :1]))
    check(inputs, SCORED[1])


@pytest.mark.parametrize("method", [SCORED[1], SCORED[3]], ids=named)
def test_queries_in_chunks(method: TopK | TopTheta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the scores of two queries; the third comes alone."""
    monkeypatch.setattr(triton_row_work, "SCORES", 2 * 2 * 48)
    inputs = problem(queries=3, batch=2, group=1)
    check(inputs, method, table(inputs, method))


@pytest.mark.parametrize("fill", [0.0, -0.0, -3.0])
def test_exactly_k_of_equals_the_first(fill: float) -> None:
    inputs = problem("causal", batch=1, group=1, keys=70)
    inputs.query.fill_(1.0)
    inputs.key.zero_()[..., 0] = fill
    inputs.key[:, :, 50, 0], inputs.key[:, :, 3, 0] = 2.0, -0.0 if fill == 0 else fill
    check(inputs, TopK(k=40))


def test_the_sum_of_values_is_taken_from_the_caller() -> None:
    inputs = problem(queries=1, layout="all")
    wrong = inputs.value.double().sum(2) + 1
    known = AttentionInputs(**{**inputs.__dict__, "value_sum": wrong})
    check(known, FUSED[3], table(known, FUSED[3]))


@pytest.mark.parametrize("method", [FUSED[2], TOP], ids=named)
@pytest.mark.parametrize("queries", [0, 1, 2])
def test_nothing_to_see(method: TopK | TopTheta, queries: int) -> None:
    inputs = problem(batch=1, queries=queries)
    nothing = torch.zeros(1, queries, dtype=torch.int64)
    for keys in (0, 37):
        empty = AttentionInputs(
            inputs.query, inputs.key[:, :, :keys], inputs.value[:, :, :keys], RowRanges(nothing, nothing)
        )
        out, counts = triton_rows.attend(empty, method, table(inputs, method), count=True)
        assert out.shape == (1, 2, queries, 16)
        assert not bool(out.any())
        assert counts is not None
        assert not bool(counts.kept.any())


@pytest.mark.parametrize(
    ("changes", "method", "reason"),
    [
        ({"dropout": 0.1}, TOP, "dropout"),
        ({}, TopK(k=4, protect_first=1), "protected keys"),
        ({"bias": torch.zeros(1, 1, 2, 37)}, FUSED[2], "a mean of values under a position bias, which may hide keys"),
        ({"width": 264}, TOP, "head size 264"),
    ],
)
def test_what_goes_the_torch_way(changes: dict[str, Any], method: TopK | TopTheta, reason: str) -> None:
    assert triton_rows.refusal(problem(**changes), method) == reason
