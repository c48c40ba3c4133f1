"""What interception refuses, by the module's name and with the way out."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.methods import AttentionInputs, AttentionMethod, Clustered, RowRanges, TopK
from own_attention import (
    HEADS,
    WAYS,
    WIDTH,
    Calculation,
    folded,
    patched,
    problem,
    sdpa,
    weighing,
)
from torch.nn import functional as F  # as torch's own code calls it
from torch.overrides import _get_current_function_mode


def refused(
    calculate: Calculation, message: str, method: AttentionMethod | None = None, heads: int | None = HEADS
) -> None:
    module, _ = patched(calculate, method or TopK(k=3), heads)
    with pytest.raises(NotPatchableError, match=rf"h\.0\.attn \(OwnAttention\) cannot be patched: {message}") as caught:
        module(*problem())
    assert "--set 're:h\\.\\d+\\.attn=none' leaves it dense" in str(caught.value)
    assert _get_current_function_mode() is None


def test_attention_that_nothing_was_seen_of_is_refused() -> None:
    nothing = "its attention could not be intercepted: it calls neither softmax over the last dimension nor "
    refused(lambda query, key, value, mask: value, nothing)
    beside = f"{nothing}scaled_dot_product_attention, but softmax over dimension 1"
    refused(lambda query, key, value, mask: query.softmax(1), beside)
    refused(lambda query, key, value, mask: torch.softmax(query, -1, out=torch.empty_like(query)), nothing)


def test_two_softmaxes_are_refused() -> None:
    twice = weighing(lambda scores: scores.softmax(-1).softmax(-1))
    refused(twice, "it calls softmax and then softmax, and which is its attention is not clear")
    mixed = "it calls scaled_dot_product_attention and then softmax"
    refused(lambda q, k, v, mask: F.softmax(sdpa(q, k, v, mask), -1), mixed)


def test_heads_that_are_not_found_are_refused() -> None:
    refused(WAYS["F.softmax"], r"which dimension of its scores \(2 x 4 x 9 x 9\) counts its 3 heads is not", heads=3)
    refused(folded, r"which dimension of its scores \(8 x 9 x 9\) counts its heads is not", heads=None)
    patched(WAYS["F.softmax"], TopK(k=3), heads=None)[0](*problem())


def test_shapes_of_sdpa_that_are_not_known_are_refused() -> None:
    without_batch = r"its queries, keys and values \(4 x 9 x 3, 4 x 9 x 3, 4 x 9 x 3\) are not batch x heads"
    refused(lambda q, k, v, mask: sdpa(q[0], k[0], v[0], mask), without_batch)
    refused(
        lambda q, k, v, mask: F.scaled_dot_product_attention(q[:, :, :2], k, v, is_causal=True),
        "its attention is causal, but 2 queries meet 9 keys",
    )


def test_clustering_needs_queries_and_keys() -> None:
    clustered = Clustered(clusters=3, k=2)
    refused(WAYS["F.softmax"], "clustered attention needs queries and keys", clustered)
    query, key, value = problem()
    inputs = AttentionInputs(query, key, value, RowRanges.all_keys(9, 9), scale=WIDTH**-0.5)
    out = patched(sdpa, clustered)[0](query, key, value)
    torch.testing.assert_close(out, clustered.attend(inputs)[0])


def test_the_rounded_denominator_is_refused_where_only_scores_are_seen() -> None:
    message = "the rounded denominator needs keys, and it hands over its scores: choose exact"
    refused(WAYS["F.softmax"], message, TopK(k=3, compensation="sdc+vmc", denominator="rounded"))
