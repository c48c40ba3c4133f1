"""Decoding steps that read keys rounded to 8 bits first: what they select is what the plain step selects.

Queries and keys are small whole numbers and the scale a power of two, so that scores are exact and ties are real ties.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
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
def test_the_selection_is_that_of_the_definition(inputs: AttentionInputs, method: TopK | TopTheta, threads: int) -> None:
    thresholds = table(inputs, method)
    out, counts = rows.attend(inputs, method, thresholds, count=True, threads=threads)
    expected, counted = method.attend(exact(inputs), thresholds=thresholds, count=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)
    for name in ("kept", "fallback", "rescued", "v_rows"):
        assert torch.equal(getattr(counts, name), getattr(counted, name)), name
