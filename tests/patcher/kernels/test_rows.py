"""Top-k and top-theta by the native library against the torch definition in float64.

Queries and keys are small whole numbers and the scale a power of two, so that scores are exact in float32: ties are
real ties, and nothing is selected differently by rounding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import TopK, TopTheta
from hf_sparsify.patcher.methods.chunk import AttentionInputs
from hf_sparsify.patcher.methods.visibility import RowRanges
from hf_sparsify.patcher.thresholds import ModuleThresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

THETA = {"post-softmax": -4.0, "max-relative": -2.0, "pre-softmax": 1.0}


def whole(shape: tuple[int, ...], generator: torch.Generator, most: int = 2) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=generator).float()


def ranges(kind: str, batch: int, queries: int, keys: int, generator: torch.Generator) -> RowRanges:
    if kind == "all":
        return RowRanges.all_keys(queries, keys)
    if kind == "causal":
        return RowRanges.causal(queries, max(keys, queries))
    last = torch.randint(0, keys + 1, (batch, queries), generator=generator)
    first = (torch.rand(batch, queries, generator=generator) * (last + 1)).long()
    if kind == "window":
        first = (last - 20).clamp(min=0)
    return RowRanges(first, last)


@st.composite
def calls(draw: st.DrawFn) -> AttentionInputs:
    """Shapes, masks and strides as they come."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries = draw(st.one_of(st.just(1), st.integers(2, 90)))
    keys = draw(st.integers(1, 300))
    kind = draw(st.sampled_from(["all", "causal", "window", "any"]))
    if kind == "causal":
        keys = max(keys, queries)
    width, value_width = draw(st.sampled_from([8, 32, 40, 64, 96])), draw(st.sampled_from([8, 24, 64, 80]))
    heads = groups * per_group
    query = whole((batch, heads, queries, width), generator)
    key, value = (
        whole((batch, groups, keys, width), generator),
        torch.randn(batch, groups, keys, value_width, generator=generator),
    )
    layout = draw(st.sampled_from(["plain", "tokens first", "part of a cache"]))
    if layout == "tokens first":
        query, key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value))
    if layout == "part of a cache":
        room = torch.full((2, batch, groups, keys + 13, max(width, value_width)), torch.nan)
        room[0, :, :, :keys, :width], room[1, :, :, :keys, :value_width] = key, value
        key, value = room[0, :, :, :keys, :width], room[1, :, :, :keys, :value_width]
    return AttentionInputs(
        query,
        key,
        value,
        ranges(kind, batch, queries, keys, generator),
        scale=draw(st.sampled_from([0.125, 0.25])),
        bias=whole((1, heads, queries, keys), generator) if draw(st.booleans()) else None,
        softcap=draw(st.sampled_from([None, None, 8.0])),
        sinks=torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
    )


@st.composite
def methods(draw: st.DrawFn) -> TopK | TopTheta:
    compensation = draw(st.sampled_from(["none", "sdc", "sdc+vmc"]))
    budgets = st.one_of(st.integers(3, 40).map(lambda k: {"k": k}), st.sampled_from([{"keep": 0.07}, {"keep": 0.5}]))
    v_mean = draw(st.sampled_from(["visible", "dropped"]))
    min_length = draw(st.one_of(st.just(0), st.integers(1, 200)))
    common = {**draw(budgets), "compensation": compensation, "v_mean": v_mean, "min_length": min_length}
    if draw(st.booleans()):
        return TopK(**common)
    placement = draw(st.sampled_from(list(THETA)))
    estimated = placement != "post-softmax" and compensation != "none"
    denominator = draw(st.sampled_from(["exact", "exp-threshold", "offline"])) if estimated else "exact"
    return TopTheta(**common, placement=placement, denominator=denominator, min_keep=draw(st.integers(1, 3)))


def table(inputs: AttentionInputs, method: TopK | TopTheta, longest: int = 250) -> ModuleThresholds | None:
    if not isinstance(method, TopTheta):
        return None
    generator = torch.Generator().manual_seed(7)
    heads = inputs.query.shape[1]
    theta = THETA[method.placement] + torch.rand(heads, 4, generator=generator)
    return ModuleThresholds(
        torch.tensor([5.0, 20.0, 90.0, 240.0]),
        theta,
        4,
        longest,
        placement=method.placement,
        dropped=torch.rand(heads, 4, generator=generator) * 4,
    )


def exact(inputs: AttentionInputs) -> AttentionInputs:
    """The same in float64."""
    bias = None if inputs.bias is None else inputs.bias.double()
    return replace(inputs, query=inputs.query.double(), key=inputs.key.double(), value=inputs.value.double(), bias=bias)


@settings(max_examples=300, deadline=None)
@given(calls(), methods())
def test_like_the_definition(inputs: AttentionInputs, method: TopK | TopTheta) -> None:
    thresholds = table(inputs, method)
    assert rows.refusal(inputs, method) is None
    out, counts = rows.attend(inputs, method, thresholds, count=True, threads=2)
    expected, counted = method.attend(exact(inputs), thresholds=thresholds, count=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(counts.kept, counted.kept)
    assert torch.equal(counts.fallback, counted.fallback)
    assert torch.equal(counts.rescued, counted.rescued)
    if inputs.query.shape[2] == 1:
        assert torch.equal(counts.v_rows, counted.v_rows)
    else:
        assert counts.v_rows is None


def example(queries: int = 70, keys: int = 130, dtype: torch.dtype = torch.float32, seed: int = 0) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, queries, 32, generator=generator).to(dtype)
    key, value = (torch.randn(2, 2, keys, 32, generator=generator).to(dtype) for _ in range(2))
    return AttentionInputs(query, key, value, RowRanges.causal(queries, keys), scale=32**-0.5)


EACH = [
    TopK(k=16),
    TopK(k=16, compensation="sdc+vmc"),
    TopTheta(k=16, compensation="sdc+vmc", v_mean="dropped"),
    TopTheta(k=16, compensation="sdc+vmc", placement="max-relative"),
    TopTheta(k=16, compensation="sdc", placement="pre-softmax", denominator="exp-threshold"),
]
each_method = pytest.mark.parametrize("method", EACH, ids=lambda method: f"{method.name}, {method.describe()}")


@each_method
@pytest.mark.parametrize("queries", [1, 70])
def test_what_no_row_sees_changes_nothing(method: TopK | TopTheta, queries: int) -> None:
    inputs = example(queries)
    seen = replace(inputs, visibility=RowRanges(torch.full((1, queries), 9), torch.full((1, queries), 120)))
    out, _ = rows.attend(seen, method, table(inputs, method))
    for hidden in (slice(0, 9), slice(120, None)):
        seen.key[:, :, hidden] = torch.nan
        seen.value[:, :, hidden] = torch.nan
    assert torch.equal(rows.attend(seen, method, table(inputs, method))[0], out)


@each_method
def test_a_later_key_changes_no_earlier_row(method: TopK | TopTheta) -> None:
    inputs = example()
    out, _ = rows.attend(inputs, method, table(inputs, method))
    inputs.key[:, :, -1] = torch.nan
    inputs.value[:, :, -1] = torch.nan
    again, _ = rows.attend(inputs, method, table(inputs, method))
    assert torch.equal(again[:, :, :-1], out[:, :, :-1])
    assert bool(again[:, :, -1].isnan().all())


@each_method
@pytest.mark.parametrize("queries", [1, 70])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_score_spoils_its_row_alone(method: TopK | TopTheta, queries: int, broken: float) -> None:
    inputs = example(queries)
    out, _ = rows.attend(inputs, method, table(inputs, method))
    inputs.query[1, 2, queries - 1, 0] = broken
    again, _ = rows.attend(inputs, method, table(inputs, method))
    assert bool(again[1, 2, -1].isnan().all())
    again[1, 2, -1] = out[1, 2, -1]
    assert torch.equal(again, out)


@each_method
def test_a_row_is_the_decoding_step(method: TopK | TopTheta) -> None:
    inputs = example()
    out, _ = rows.attend(inputs, method, table(inputs, method))
    for at in (0, 33, 69):
        last = 130 - 70 + at + 1
        one = replace(
            inputs,
            query=inputs.query[:, :, at : at + 1],
            key=inputs.key[:, :, :last],
            value=inputs.value[:, :, :last],
            visibility=RowRanges.all_keys(1, last),
        )
        step, _ = rows.attend(one, method, table(inputs, method))
        torch.testing.assert_close(step, out[:, :, at : at + 1], rtol=1e-5, atol=1e-6)


@each_method
def test_the_sum_of_values_is_taken_from_the_caller(method: TopK | TopTheta) -> None:
    inputs = example(queries=1)
    out, _ = rows.attend(inputs, method, table(inputs, method))
    known = replace(inputs, value_sum=inputs.value.double().sum(2))
    torch.testing.assert_close(rows.attend(known, method, table(inputs, method))[0], out, rtol=1e-5, atol=1e-6)


@each_method
@pytest.mark.parametrize(("queries", "keys"), [(1, 5000), (300, 300)])
def test_threads_change_nothing(method: TopK | TopTheta, queries: int, keys: int) -> None:
    inputs = example(queries, keys)
    thresholds = table(inputs, method, longest=6000)
    one, _ = rows.attend(inputs, method, thresholds, threads=1)
    for threads in (2, 5):
        many, _ = rows.attend(inputs, method, thresholds, threads=threads)
        if queries > 1:
            assert torch.equal(many, one)  # a row is one thread's work
        torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-6)


@each_method
@pytest.mark.parametrize("queries", [1, 70])
def test_bfloat16_is_storage_only(method: TopK | TopTheta, queries: int) -> None:
    inputs = example(queries, dtype=torch.bfloat16)
    out, _ = rows.attend(inputs, method, table(inputs, method))
    wide = replace(inputs, query=inputs.query.float(), key=inputs.key.float(), value=inputs.value.float())
    expected, _ = rows.attend(wide, method, table(inputs, method))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())


@pytest.mark.parametrize("keys", [3000, 9000])
@pytest.mark.parametrize("order", ["random", "ascending", "descending", "equal"])
@pytest.mark.parametrize("queries", [1, 40])
def test_long_rows_in_any_order(keys: int, order: str, queries: int) -> None:
    """Several spans of keys, the candidates thinned out again and again."""
    inputs = example(queries, keys)
    level = {
        "random": torch.randn(keys, generator=torch.Generator().manual_seed(1)),
        "ascending": torch.arange(keys) / 1000,
        "descending": -torch.arange(keys) / 1000,
        "equal": torch.zeros(keys),
    }[order]
    inputs = replace(inputs, query=torch.ones_like(inputs.query), visibility=RowRanges.causal(queries, keys), scale=1.0)
    inputs.key.zero_()[..., 0] = level
    for method in (TopK(k=50), TopK(k=700, compensation="sdc+vmc"), TopTheta(k=50)):  # without a table: exact top-k
        out, counts = rows.attend(inputs, method, count=True)
        expected, counted = method.attend(exact(inputs), count=True)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(counts.kept, counted.kept)


def test_no_keys_at_all_give_zeros() -> None:
    inputs = example(queries=3)
    nothing = RowRanges(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))
    out, _ = rows.attend(replace(inputs, visibility=nothing), TopK(k=4, compensation="sdc+vmc"))
    assert not bool(out.any())


@each_method
@pytest.mark.parametrize("queries", [1, 70])
def test_no_sequence_at_all_gives_no_rows(method: TopK | TopTheta, queries: int) -> None:
    inputs = example(queries)
    nothing = replace(inputs, query=inputs.query[:0], key=inputs.key[:0], value=inputs.value[:0])
    out, _ = rows.attend(nothing, method, table(nothing, method), threads=2)
    assert out.shape == (0, 4, queries, 32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"query": torch.zeros(2, 4, 70, 32, dtype=torch.float64)}, "stored as float32, float64"),
        ({"query": torch.zeros(2, 4, 70, 32, requires_grad=True)}, "gradients"),
        ({"sinks": torch.zeros(4, requires_grad=True)}, "gradients"),
        ({"query": torch.zeros(2, 4, 70, 20), "key": torch.zeros(2, 2, 130, 20)}, "head size 20"),
        ({"bias": torch.full((1, 4, 70, 130), -torch.inf)}, "a position bias that hides keys"),
    ],
)
def test_what_goes_the_torch_way(changes: dict[str, object], reason: str) -> None:
    assert rows.refusal(replace(example(), **changes), TopK(k=4)) == reason


def test_protected_keys_go_the_torch_way() -> None:
    assert rows.refusal(example(), TopK(k=4, protect_first=1)) == "protected keys"
