"""Decoding steps that read keys rounded to 8 bits first: what they select is what the plain step selects.

Queries and keys are small whole numbers and the scale a power of two, so that scores are exact and ties are real ties.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import TopK, TopTheta
from hf_sparsify.patcher.methods.chunk import AttentionInputs
from hf_sparsify.patcher.methods.rounded_keys import PANEL, RoundedKeys, rounded
from hf_sparsify.patcher.methods.visibility import RowRanges
from hf_sparsify.patcher.thresholds import ModuleThresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

THETA = {"post-softmax": -4.0, "max-relative": -2.0, "pre-softmax": 1.0}


def whole(shape: tuple[int, ...], generator: torch.Generator, most: int = 2) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=generator).float()


def spoiled(key: Tensor, keys: int) -> RoundedKeys:
    """Room for rounded keys, full of what was there before."""
    made = RoundedKeys.room_for(key, keys)
    made.codes.fill_(-128)
    made.steps.fill_(torch.nan)
    made.errors.fill_(torch.inf)
    return made


@st.composite
def calls(draw: st.DrawFn) -> AttentionInputs:
    """Shapes, ranges and strides as they come, with room for rounded keys; NaN where nobody looks."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 4, 7]))
    keys, heads = draw(st.one_of(st.integers(1, 300), st.sampled_from([513, 1100]))), groups * per_group
    width = draw(st.sampled_from([8, 24, 64, 128, 256]))
    last = torch.randint(0, keys + 1, (batch, 1), generator=generator)
    first = (torch.rand(batch, 1, generator=generator) * (last + 1)).long()
    if draw(st.booleans()):
        first, last = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), keys)
    query = whole((batch, heads, 1, width), generator)
    room = torch.full((2, batch, groups, keys + 5, width), torch.nan)
    key, value = room[0, :, :, :keys], room[1, :, :, :keys]
    for row in range(batch):
        seen = slice(int(first[row % first.shape[0], 0]), int(last[row % first.shape[0], 0]))
        shape = (groups, seen.stop - seen.start, width)
        key[row, :, seen], value[row, :, seen] = whole(shape, generator), torch.randn(shape, generator=generator)
    return AttentionInputs(
        query,
        key,
        value,
        RowRanges(first, last),
        scale=draw(st.sampled_from([0.125, 0.25])),
        bias=whole((1, heads, 1, keys), generator) if draw(st.booleans()) else None,
        softcap=draw(st.sampled_from([None, None, 8.0])),
        sinks=torch.randn(heads, generator=generator) if draw(st.booleans()) else None,
        rounded=spoiled(key, keys + draw(st.sampled_from([0, 1, 40]))),
    )


@st.composite
def methods(draw: st.DrawFn) -> TopK | TopTheta:
    """Methods that need no score of a dropped key, but for rows without a threshold."""
    budget = draw(st.one_of(st.integers(3, 40).map(lambda k: {"k": k}), st.sampled_from([{"keep": 0.07}])))
    if draw(st.booleans()):
        return TopK(**budget)
    placement, min_keep = draw(st.sampled_from(["max-relative", "pre-softmax"])), draw(st.integers(1, 3))
    denominator = draw(st.sampled_from(["exact", "exp-threshold", "offline"]))
    compensation = "none" if denominator == "exact" else draw(st.sampled_from(["sdc", "sdc+vmc"]))
    return TopTheta(
        **budget, placement=placement, min_keep=min_keep, denominator=denominator, compensation=compensation
    )


def table(inputs: AttentionInputs, method: TopK | TopTheta, longest: int = 1000) -> ModuleThresholds | None:
    if not isinstance(method, TopTheta):
        return None
    generator = torch.Generator().manual_seed(7)
    heads = inputs.query.shape[1]
    theta = THETA[method.placement] + torch.rand(heads, 4, generator=generator)
    dropped = torch.rand(heads, 4, generator=generator) * 4
    lengths = torch.tensor([5.0, 20.0, 90.0, 240.0])
    return ModuleThresholds(lengths, theta, 4, longest, placement=method.placement, dropped=dropped)


def exact(inputs: AttentionInputs) -> AttentionInputs:
    """The same in float64, without rounded keys."""
    bias = None if inputs.bias is None else inputs.bias.double()
    query, key, value = inputs.query.double(), inputs.key.double(), inputs.value.double()
    return replace(inputs, query=query, key=key, value=value, bias=bias, rounded=None)


@settings(max_examples=200, deadline=None)
@given(calls(), methods(), st.integers(1, 3))
def test_the_selection_is_that_of_the_definition(
    inputs: AttentionInputs, method: TopK | TopTheta, threads: int
) -> None:
    thresholds = table(inputs, method)
    out, counts = rows.attend(inputs, method, thresholds, count=True, threads=threads)
    expected, counted = method.attend(exact(inputs), thresholds=thresholds, count=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
    for name in ("kept", "fallback", "rescued", "v_rows"):
        assert torch.equal(getattr(counts, name), getattr(counted, name)), name


@st.composite
def rounding_methods(draw: st.DrawFn) -> TopK | TopTheta:
    """Methods whose denominator is that of rounded keys."""
    budget = draw(st.one_of(st.integers(3, 40).map(lambda k: {"k": k}), st.sampled_from([{"keep": 0.07}])))
    compensation, v_mean = draw(st.sampled_from(["sdc", "sdc+vmc"])), draw(st.sampled_from(["visible", "dropped"]))
    common = {**budget, "compensation": compensation, "v_mean": v_mean, "denominator": "rounded"}
    if draw(st.booleans()):
        return TopK(**common)
    placement = draw(st.sampled_from(list(THETA)))
    if placement == "post-softmax" and draw(st.booleans()):
        common["compensation"] = "none"
    return TopTheta(**common, placement=placement, min_keep=draw(st.integers(1, 3)))


@settings(max_examples=150, deadline=None)
@given(calls(), rounding_methods(), st.integers(1, 3), st.booleans())
def test_the_rounded_denominator_is_that_of_the_definition(
    inputs: AttentionInputs, method: TopK | TopTheta, threads: int, carried: bool
) -> None:
    thresholds = table(inputs, method)
    call = inputs if carried else replace(inputs, rounded=None)
    out, counts = rows.attend(call, method, thresholds, count=True, threads=threads)
    expected, counted = method.attend(exact(inputs), thresholds=thresholds, count=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
    for name in ("kept", "fallback", "rescued", "v_rows"):
        assert torch.equal(getattr(counts, name), getattr(counted, name)), name


def example(keys: int, dtype: torch.dtype = torch.float32, heads: int = 6) -> AttentionInputs:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 1, 64, generator=generator).to(dtype)
    key, value = (torch.randn(2, 2, keys, 64, generator=generator).to(dtype) for _ in range(2))
    visibility = RowRanges.all_keys(1, keys)
    return AttentionInputs(query, key, value, visibility, scale=0.1, rounded=spoiled(key, keys))


EACH = [
    TopK(k=16),
    TopK(k=1),
    TopTheta(k=16, placement="pre-softmax"),
    TopTheta(k=16, placement="max-relative"),
    TopTheta(k=16, placement="max-relative", compensation="sdc+vmc", denominator="exp-threshold"),
    TopTheta(k=16, placement="pre-softmax", compensation="sdc", denominator="offline"),
    TopK(k=16, compensation="sdc+vmc", denominator="rounded"),
    TopTheta(k=16, compensation="sdc+vmc", v_mean="dropped", denominator="rounded"),
]
each_method = pytest.mark.parametrize("method", EACH, ids=lambda method: f"{method.name}, {method.describe()}")


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_keys_are_read_in_full_and_the_output_is_that_of_all(method: TopK | TopTheta, dtype: torch.dtype) -> None:
    inputs = example(3000, dtype)
    thresholds = table(inputs, method, longest=4000)
    for step in range(2):
        out, counts = rows.attend(inputs, method, thresholds, count=True)
        assert inputs.rounded.used
        assert bool((counts.k_rows >= counts.v_rows).all())
        if step:  # in the first one all keys are new
            assert int((counts.k_rows - counts.v_rows).max()) < 300
        else:
            assert bool((counts.k_rows == 3000).all())
    if method.denominator != "rounded":
        plain, counted = rows.attend(replace(inputs, rounded=None), method, thresholds, count=True)
        assert torch.equal(out, plain)
        assert counted.k_rows is None
        assert torch.equal(counts.kept, counted.kept)


@each_method
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(method: TopK | TopTheta, threads: int) -> None:
    inputs = example(5000)
    thresholds = table(inputs, method, longest=6000)
    one, _ = rows.attend(inputs, method, thresholds, threads=1)
    other = replace(inputs, rounded=spoiled(inputs.key, 5000))
    many, _ = rows.attend(other, method, thresholds, threads=threads)
    torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-6)
    assert torch.equal(other.rounded.codes[:, :, :312], inputs.rounded.codes[:, :, :312])
    assert torch.equal(other.rounded.errors[:, :, :5000], inputs.rounded.errors[:, :, :5000])


@each_method
def test_what_no_row_sees_changes_nothing(method: TopK | TopTheta) -> None:
    inputs = replace(example(700), visibility=RowRanges(torch.full((1, 1), 9), torch.full((1, 1), 620)))
    out, _ = rows.attend(inputs, method, table(inputs, method))
    for hidden in (slice(0, 9), slice(620, None)):
        inputs.key[:, :, hidden] = torch.nan
        inputs.value[:, :, hidden] = torch.nan
    again = replace(inputs, rounded=spoiled(inputs.key, 700))
    for call in (inputs, again):
        assert torch.equal(rows.attend(call, method, table(inputs, method))[0], out)
    assert again.rounded.filled.tolist() == [[9, 620]] * 2


@each_method
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_rows_alone(method: TopK | TopTheta, broken: float) -> None:
    inputs = example(700)
    thresholds = table(inputs, method)
    out, _ = rows.attend(inputs, method, thresholds)
    inputs.query[1, 5, 0, 0] = broken
    inputs.key[0, 0, 650, 3] = broken * inputs.query[0, 0, 0, 3]  # +inf for the first head
    again, _ = rows.attend(replace(inputs, rounded=spoiled(inputs.key, 700)), method, thresholds)
    assert bool(again[1, 5].isnan().all())
    assert bool(again[0, 0].isnan().all())
    spared = [again[0, 3:], again[1, :5]]
    for found, expected in zip(spared, [out[0, 3:], out[1, :5]], strict=True):
        assert torch.equal(found, expected)


@each_method
def test_rounded_keys_grow_with_the_cache(method: TopK | TopTheta) -> None:
    """40 steps, the start of the range moving as in a sliding window: each key is rounded once, as if all at once."""
    inputs, thresholds = example(340), table(example(340), method)
    made = spoiled(inputs.key, 304)
    for keys in range(300, 341):
        if made.room < keys:
            made = made.enlarged(inputs.key, keys)
        first, last = torch.full((1, 1), max(0, keys - 320)), torch.full((1, 1), keys)
        call = replace(inputs, key=inputs.key[:, :, :keys], value=inputs.value[:, :, :keys])
        call = replace(call, visibility=RowRanges(first, last), rounded=made)
        out, counts = rows.attend(call, method, thresholds, count=True)
        fresh = replace(call, rounded=spoiled(call.key, keys))
        expected, _ = rows.attend(fresh, method, thresholds)
        assert torch.equal(out, expected)
        assert counts.k_rows is None or keys == 300 or int(counts.k_rows.max()) < keys
    if made.used:
        assert made.filled.tolist() == [[0, 340]] * 2
        panels = made.codes.permute(0, 1, 2, 4, 3).flatten(2, 3)[:, :, :340].float()
        torch.testing.assert_close(panels * made.steps[:, :, :340, None], rounded(inputs.key), rtol=1e-6, atol=0)
        error = (inputs.key - rounded(inputs.key)).norm(dim=-1)
        assert bool((made.errors[:, :, :340] >= error).all())
        torch.testing.assert_close(made.errors[:, :, :340], error, rtol=0.01, atol=0)


def test_a_range_that_goes_back_is_rounded_from_its_start() -> None:
    inputs = example(400)
    late = replace(inputs, visibility=RowRanges(torch.full((1, 1), 200), torch.full((1, 1), 400)))
    rows.attend(late, TopK(k=2))
    assert inputs.rounded.filled.tolist() == [[200, 400]] * 2
    rows.attend(inputs, TopK(k=2))
    assert inputs.rounded.filled.tolist() == [[0, 400]] * 2
    assert bool(inputs.rounded.steps[:, :, :400].isfinite().all())


def test_calls_that_need_every_score_or_keep_much_are_read_in_full() -> None:
    inputs = example(400)
    for method in (TopK(k=2, compensation="sdc"), TopK(k=100), TopK(k=400), TopTheta(k=2, min_length=500)):
        _, counts = rows.attend(inputs, method, count=True)
        assert not inputs.rounded.used
        assert counts.k_rows is None
    assert inputs.rounded.filled.tolist() == [[0, 0]] * 2
    rows.attend(inputs, TopK(k=2))
    assert inputs.rounded.used


def test_too_little_room_is_refused() -> None:
    inputs = example(400)
    with pytest.raises(UsageError, match="room for 384 do not go with 400 keys: enlarge them"):
        rows.attend(replace(inputs, rounded=RoundedKeys.room_for(inputs.key, 400 - PANEL)), TopK(k=2))
