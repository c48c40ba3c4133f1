"""Which keys each row sees: intervals and full masks say the same, and what a loop says."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.patcher.methods import FullMask, RowRanges
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LAYOUTS, visibility, visible_keys

KEYS = 6


@st.composite
def row_ranges(draw: st.DrawFn) -> RowRanges:
    """Any intervals for 2 sequences of 5 queries, empty ones among them."""
    firsts = draw(st.lists(st.integers(0, KEYS), min_size=10, max_size=10))
    lasts = [draw(st.integers(first, KEYS)) for first in firsts]
    return RowRanges(torch.tensor(firsts).view(2, 5), torch.tensor(lasts).view(2, 5))


def test_causal_gives_the_last_query_every_key() -> None:
    ranges = RowRanges.causal(2, 4)
    assert ranges.lengths().tolist() == [[[3, 4]]]
    assert visible_keys(ranges, 1, 1, 2, 4)[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]


def test_all_keys_hides_nothing() -> None:
    ranges = RowRanges.all_keys(3, 4)
    assert ranges.lengths().tolist() == [[[4, 4, 4]]]
    assert ranges.hidden(0, 3, 0, 4) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(row_ranges(), st.integers(0, 4), st.integers(1, 5))
def test_intervals_agree_with_the_loop(ranges: RowRanges, start: int, count: int) -> None:
    stop = min(start + count, 5)
    visible = visible_keys(ranges, 2, 1, 5, KEYS)
    assert torch.equal(ranges.lengths(), visible.sum(-1))

    low, high = ranges.key_span(start, stop, KEYS)
    seen = visible[:, :, start:stop].any(2).any(1).any(0).nonzero().flatten().tolist()
    assert (low, high) == ((seen[0], seen[-1] + 1) if seen else (0, 0))

    hidden = ranges.hidden(start, stop, low, high)
    expected = ~visible[:, :, start:stop, low:high]
    assert torch.equal(torch.zeros_like(expected) if hidden is None else hidden, expected)

    ranks = ranges.ranks(start, stop, low, high)
    shown = ~expected
    assert torch.equal(ranks[shown], (shown.cumsum(-1) - 1)[shown])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_mask_says_the_same_as_the_intervals(layout: str) -> None:
    seen = visibility(layout, 2, 4, 5, 7)
    visible = visible_keys(seen, 2, 4, 5, 7)
    full = FullMask(visible)
    assert torch.equal(full.lengths(), seen.lengths().expand(2, 4, 5))
    assert full.key_span(1, 4, 7) == (0, 7)
    hidden = full.hidden(1, 4, 2, 6)
    assert hidden is not None
    assert torch.equal(hidden, ~visible[:, :, 1:4, 2:6])
    shown = visible[:, :, 1:4]
    ranks = full.ranks(1, 4, 0, 7)
    assert torch.equal(ranks[shown], seen.ranks(1, 4, 0, 7).expand_as(shown)[shown])
