"""Masks: what the intervals say is what transformers' own mask says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking_nothing import asking_nothing
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding import masks
from hf_sparsify.patcher.binding.masks import added_of, build_mask, is_row_ranges, ordinary_mask, read_mask
from hf_sparsify.patcher.methods import RowRanges
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import visible_keys
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

PATTERNS: dict[str, Callable[..., Any]] = {
    "causal": causal_mask_function,
    "sliding": sliding_window_causal_mask_function(3),
    "bidirectional": bidirectional_mask_function,
}

# (queries, keys, first query's position, first key's position)
SHAPES = {
    "prefill": (6, 6, 0, 0),
    "chunk": (3, 8, 5, 0),
    "decode": (1, 8, 7, 0),
    "empty static cache": (6, 11, 0, 0),
    "half-full static cache": (1, 11, 4, 0),
    "sliding cache": (1, 5, 9, 5),
    "sliding cache, chunk": (3, 7, 9, 5),
    "no query sees all": (4, 2, 0, 0),
}


def padding(kind: str, length: int) -> Tensor | None:
    """A 2-D attention mask for two sequences over `length` tokens."""
    if kind == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.bool)
    if kind == "left":
        mask[1, :2] = False
    elif kind == "right":
        mask[1, -2:] = False
    elif kind == "holes":
        mask[1, 1] = False
    elif kind == "all of one":
        mask[1] = False
    return mask


def expected_mask(arguments: dict[str, Any]) -> Tensor:
    made = sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert made is not None
    return made


def as_visible(mask: Tensor, queries: int, keys: int) -> Tensor:
    seen, added = read_mask(mask, queries, keys, causal=False)
    assert added is None
    return visible_keys(seen, 2, 1, queries, keys)


def call(pattern: str, shape: str, attention_mask: Tensor | None) -> dict[str, Any]:
    """What transformers hands a mask builder for two sequences."""
    queries, keys, q_offset, kv_offset = SHAPES[shape]
    return {
        "batch_size": 2,
        "q_length": queries,
        "kv_length": keys,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": PATTERNS[pattern],
        "attention_mask": attention_mask,
    }


@pytest.mark.parametrize("kind", ["none", "ones", "left", "right", "all of one"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_intervals_equal_the_mask_of_transformers(pattern: str, shape: str, kind: str) -> None:
    queries, keys, q_offset, kv_offset = SHAPES[shape]
    for seen_tokens in (keys + kv_offset, min(keys + kv_offset, q_offset + queries)):
        arguments = call(pattern, shape, padding(kind, seen_tokens))
        mask = build_mask(**arguments)
        assert is_row_ranges(mask)
        assert mask.shape == (2, 1, queries, 3)
        assert torch.equal(as_visible(mask, queries, keys), expected_mask(arguments))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 3),
    st.integers(1, 6),
    st.lists(st.booleans(), min_size=24, max_size=24),
)
def test_any_padding_gives_the_mask_of_transformers(
    queries: int, keys: int, q_offset: int, kv_offset: int, window: int, valid: list[bool]
) -> None:
    for mask_function in (
        causal_mask_function,
        sliding_window_causal_mask_function(window),
        bidirectional_mask_function,
    ):
        arguments = {
            "batch_size": 2,
            "q_length": queries,
            "kv_length": keys,
            "q_offset": torch.tensor(q_offset),
            "kv_offset": kv_offset,
            "mask_function": mask_function,
            "attention_mask": torch.tensor(valid).view(2, 12),
        }
        mask = build_mask(**arguments)
        assert torch.equal(as_visible(mask, queries, keys), expected_mask(arguments))


@pytest.mark.parametrize(
    "mask_function",
    [
        chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64)),
        sliding_window_bidirectional_mask_function(2),
        and_masks(packed_sequence_mask_function(torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)), causal_mask_function),
        or_masks(causal_mask_function, sliding_window_overlay(2)),
        or_masks(sliding_window_overlay(3), causal_mask_function),
        and_masks(causal_mask_function, sliding_window_overlay(3), sliding_window_overlay(2)),
        lambda b, h, q, k: k <= q + 1,
        functools.partial(lambda shift, b, h, q, k: k <= q + shift, 1),
    ],
    ids=["chunked", "window both ways", "packed", "or", "or of a window", "three parts", "unknown", "partial"],
)
def test_other_patterns_give_the_full_mask(mask_function: Callable[..., Any]) -> None:
    arguments = {"batch_size": 2, "q_length": 6, "kv_length": 6, "mask_function": mask_function}
    mask = build_mask(**arguments, attention_mask=padding("left", 6))
    assert torch.equal(mask, expected_mask({**arguments, "attention_mask": padding("left", 6)}))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padding_with_holes_gives_the_full_mask(pattern: str) -> None:
    arguments = {
        "batch_size": 2,
        "q_length": 6,
        "kv_length": 6,
        "mask_function": PATTERNS[pattern],
        "attention_mask": padding("holes", 6),
    }
    mask = build_mask(**arguments)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected_mask(arguments))


@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_caller_that_forbids_skipping_gets_the_full_mask(pattern: str, kind: str) -> None:
    arguments = {
        "batch_size": 2,
        "q_length": 6,
        "kv_length": 6,
        "mask_function": PATTERNS[pattern],
        "attention_mask": padding(kind, 6),
    }
    forbidden = "allow_is_bidirectional_skip" if pattern == "bidirectional" else "allow_is_causal_skip"
    mask = build_mask(**arguments, **{forbidden: False}, dtype=torch.float32, config=None, use_vmap=False)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected_mask(arguments))


@pytest.mark.parametrize(
    ("pattern", "kind", "counted"),
    [
        ("causal", "none", None),
        ("causal", "ones", None),
        ("bidirectional", "right", [[True] * 6, [True] * 4 + [False] * 2]),
        ("causal", "right", [[True] * 6, [True] * 4 + [False] * 2]),
        ("sliding", "left", [[True] * 6, [False] * 2 + [True] * 4]),
        ("causal", "all of one", [[True] * 6, [False] * 6]),
    ],
)
def test_padding_queries_are_known(pattern: str, kind: str, counted: list[list[bool]] | None) -> None:
    mask = build_mask(2, 6, 6, mask_function=PATTERNS[pattern], attention_mask=padding(kind, 6))
    seen, _ = read_mask(mask, 6, 6, causal=True)
    assert isinstance(seen, RowRanges)
    assert (None if seen.counted is None else seen.counted.tolist()) == counted


def test_equal_sequences_share_their_intervals() -> None:
    seen, _ = read_mask(build_mask(2, 6, 6, attention_mask=padding("ones", 6)), 6, 6, causal=True)
    assert isinstance(seen, RowRanges)
    assert seen.first.shape == (1, 6)


def test_the_mask_is_linear_in_length() -> None:
    assert build_mask(1, 5000, 5000, mask_function=sliding_window_causal_mask_function(7)).numel() == 3 * 5000


def test_no_mask_means_what_the_module_says() -> None:
    for causal, expected in ((True, [1, 2, 3]), (False, [3, 3, 3])):
        seen, added = read_mask(None, 3, 3, causal)
        assert added is None
        assert seen.lengths().tolist() == [[expected]]
    assert read_mask(None, 1, 5, causal=True)[0].lengths().tolist() == [[[5]]]
    assert read_mask(None, 2, 5, causal=False)[0].lengths().tolist() == [[[5, 5]]]
    with pytest.raises(NotPatchableError, match="without a mask"):
        read_mask(None, 2, 5, causal=True)


def test_intervals_that_a_model_widens_are_refused() -> None:
    """DeepSeek V4 appends columns to the mask that it gets."""
    mask = build_mask(**call("causal", "prefill", None))
    with pytest.raises(NotPatchableError, match="a model whose own code adds to its mask cannot be patched"):
        read_mask(torch.cat([mask, mask], -1), 6, 6, causal=True)


@pytest.mark.parametrize("batch", [1, 2])
def test_intervals_are_added_to_scores_as_an_ordinary_mask(batch: int) -> None:
    mask = build_mask(**call("causal", "prefill", padding("left", 6)))[:batch]
    scores = torch.zeros(batch, 4, 6, 6)
    visible = visible_keys(read_mask(mask, 6, 6, causal=True)[0], batch, 4, 6, 6)
    assert torch.equal(scores + added_of(mask, scores) == 0, visible)


@pytest.mark.parametrize("kind", ["none", "ones", "left", "right"])
@pytest.mark.parametrize("shape", ["prefill", "chunk", "decode", "empty static cache", "sliding cache"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ordinary_mask_equals_the_mask_of_transformers(pattern: str, shape: str, kind: str) -> None:
    queries, keys, _q_offset, kv_offset = SHAPES[shape]
    arguments = call(pattern, shape, padding(kind, keys + kv_offset))
    mask = build_mask(**arguments)
    expected = expected_mask(arguments)
    made, causal = ordinary_mask(mask, queries, keys)
    if made is None:
        assert causal is not None
        made = torch.ones(queries, keys, dtype=torch.bool)
        made = (made.tril() if causal else made).expand(2, 1, queries, keys)
    else:
        assert causal is False
        assert made.dtype == torch.bool
    assert torch.equal(made, expected)
    again, _ = ordinary_mask(mask, queries, keys)
    assert again is None or again is ordinary_mask(mask, queries, keys)[0]


@pytest.mark.parametrize("kind", ["none", "ones", "left"])
@pytest.mark.parametrize("shape", ["prefill", "chunk", "decode", "empty static cache", "sliding cache"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_that_cannot_be_asked_say_the_same(pattern: str, shape: str, kind: str) -> None:
    """As on a GPU; when a mask is made its padding is looked at once."""
    queries, keys, _q_offset, kv_offset = SHAPES[shape]
    arguments = call(pattern, shape, padding(kind, keys + kv_offset))
    mask, expected = build_mask(**arguments), expected_mask(arguments)
    with asking_nothing():
        made, causal = ordinary_mask(mask, queries, keys)
        seen, _ = read_mask(mask, queries, keys, causal=True)
    assert torch.equal(visible_keys(seen, 2, 1, queries, keys), expected)
    if made is None:
        whole = torch.ones(queries, keys, dtype=torch.bool)
        made = (whole.tril() if causal else whole).expand(2, 1, queries, keys)
    assert torch.equal(made, expected)


def test_without_padding_sizes_tell_that_a_mask_needs_no_tensor() -> None:
    with asking_nothing():
        assert ordinary_mask(build_mask(2, 6, 6), 6, 6) == (None, True)
        assert ordinary_mask(build_mask(2, 1, 6, q_offset=5), 1, 6) == (None, False)


def test_nobody_looks_at_padding_while_a_cuda_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = call("causal", "prefill", padding("left", 6))
    monkeypatch.setattr(masks, "_is_recorded", lambda: True)
    with asking_nothing():
        mask = build_mask(**arguments)
    assert torch.equal(mask, expected_mask(arguments))


def test_a_plain_causal_mask_needs_no_tensor() -> None:
    assert ordinary_mask(build_mask(2, 6, 6), 6, 6) == (None, True)
    assert ordinary_mask(build_mask(2, 6, 6, mask_function=bidirectional_mask_function), 6, 6) == (None, False)
    assert ordinary_mask(build_mask(2, 1, 6, q_offset=5), 1, 6) == (None, False)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 2, 2, dtype=torch.bool), torch.zeros(1, 1, 2, 2)])
def test_other_masks_pass_through_ordinary_mask(mask: Tensor | None) -> None:
    made, causal = ordinary_mask(mask, 2, 2)
    assert made is mask
    assert causal is None
