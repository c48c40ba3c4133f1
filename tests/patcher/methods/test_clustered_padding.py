"""Clustered attention of padded sequences, and the masks that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import dense, self_attention
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, FullMask, RowRanges, Visibility
from hf_sparsify.patcher.methods.clustered import shared_keys
from tiny_models import attention_inputs
from torch import Tensor

LENGTH = 20
METHOD_LIST = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5)]
LAYOUTS = ("right", "left", "holes", "one mask for all")


def attend(method: ClusteredPlain, call: AttentionInputs) -> Tensor:
    return method.attend(call)[0]


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def valid_keys(layout: str) -> Tensor:
    """bool [3, N]: a whole sequence, a padded one, and one that is all padding."""
    valid = torch.ones(3, LENGTH, dtype=torch.bool)
    if layout == "right":
        valid[1, 13:] = False
    elif layout == "left":
        valid[1, :7] = False
    else:
        valid[1, [0, 3, 4, 9, 12, 17, 19]] = False
    valid[2] = False
    return valid[1].expand(3, -1) if layout == "one mask for all" else valid


def by_ranges(valid: Tensor) -> RowRanges:
    """The interval of valid keys, for every row of a sequence."""
    first = valid.to(torch.int64).argmax(-1, keepdim=True)
    last = first + valid.sum(-1, keepdim=True)
    return RowRanges(first.expand(-1, LENGTH), last.expand(-1, LENGTH))


def by_mask(valid: Tensor, blind_padding: bool = False) -> FullMask:
    """The valid keys for every row, or only for the rows of valid tokens."""
    visible = valid[:, None, None, :].expand(-1, 1, LENGTH, -1)
    return FullMask(visible & valid[:, None, :, None] if blind_padding else visible)


def masks(layout: str) -> list[Visibility]:
    """The same padding in every form that can say it."""
    valid = valid_keys(layout)
    forms: list[Visibility] = [by_mask(valid), by_mask(valid, blind_padding=True)]
    if layout in ("right", "left"):
        forms.append(by_ranges(valid))
    if layout == "one mask for all":
        forms.append(by_mask(valid[:1]))
    return forms


def call_of(layout: str, form: int = 0, **extra: Any) -> AttentionInputs:
    return replace(self_attention(LENGTH, batch=3, **extra), visibility=masks(layout)[form])


def alone(call: AttentionInputs, index: int, valid: Tensor) -> AttentionInputs:
    """One sequence without its padding."""
    count = int(valid.sum())
    bias = call.bias
    return replace(
        call,
        query=call.query[index : index + 1, :, valid],
        key=call.key[index : index + 1, :, valid],
        value=call.value[index : index + 1, :, valid],
        bias=None if bias is None else bias[:, :, valid][..., valid],
        visibility=RowRanges.all_keys(count, count),
    )


@pytest.mark.parametrize("extra", [{}, {"bias": True, "softcap": 2.0}, {"heads": 3, "groups": 1}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_sequence_alone_and_in_a_padded_batch(method: ClusteredPlain, layout: str, extra: dict[str, Any]) -> None:
    """Invariants 13 and 14: padding on either side, or with holes, in every form of mask."""
    valid = valid_keys(layout)
    for form in range(len(masks(layout))):
        call = call_of(layout, form, **extra)
        out = attend(method, call)
        for index in range(3):
            if valid[index].any():
                near(out[index, :, valid[index]], attend(method, alone(call, index, valid[index]))[0])


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (1, 4), (1, 1)])
def test_a_padded_batch_with_a_bias_of_every_shape(shape: tuple[int, int]) -> None:
    """Invariant 2: a sequence takes its own bias along."""
    bias = torch.randn(*shape, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    call, valid = replace(call_of("left"), bias=bias), valid_keys("left")
    out = attend(Clustered(clusters=3, k=LENGTH), call)
    near(out.transpose(1, 2)[valid], dense(call).transpose(1, 2)[valid])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_padding_and_sequences_of_padding_give_zeros(method: ClusteredPlain, layout: str) -> None:
    """Invariants 15 and 16: exact zeros, never NaN, whether or not padding may look at anything."""
    valid = valid_keys(layout)
    for form in range(len(masks(layout))):
        out = attend(method, call_of(layout, form, bias=True)).transpose(1, 2)
        assert torch.isfinite(out).all()
        assert not out[~valid].any()
        assert bool((out[valid] != 0).all())


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [*METHOD_LIST, Clustered(k=LENGTH)], ids=str)
def test_what_padding_holds_never_matters(method: ClusteredPlain, layout: str, poison: float) -> None:
    """Invariant 12: to the bit, for queries, keys, values and bias of padding at once."""
    call, hidden = call_of(layout, bias=True), ~valid_keys(layout)
    clean = attend(method, call)
    names = ("query", "key", "value")
    spoilt = {name: getattr(call, name).masked_fill(hidden[:, None, :, None], poison) for name in names}
    assert call.bias is not None
    bias = call.bias.masked_fill(hidden[:, None, None, :], poison).masked_fill(hidden[:, None, :, None], poison)
    assert torch.equal(attend(method, replace(call, **spoilt, bias=bias)), clean)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [12, 13, 19, 20, 100])
def test_a_k_of_all_valid_keys_is_dense_in_a_padded_batch(k: int, layout: str) -> None:
    """Invariant 2: the padded sequence has fewer valid keys than k, and k is at most all keys, for any clusters."""
    valid = valid_keys(layout)
    assert int(valid[1].sum()) == 13
    for clusters in (1, 3, 50):
        for extra in ({}, {"bias": True}):
            call = call_of(layout, **extra)
            out, expected = attend(Clustered(clusters=clusters, k=k), call), dense(call)
            difference = (out - expected)[1, :, valid[1]].abs().max()
            assert bool(difference < 1e-10) == (k >= 13 or clusters == 50)
            if k >= LENGTH:
                near(out.transpose(1, 2)[valid], expected.transpose(1, 2)[valid])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [ClusteredPlain(clusters=13), Clustered(clusters=13, k=2)], ids=str)
def test_as_many_clusters_as_valid_tokens_is_dense(method: ClusteredPlain, layout: str) -> None:
    """Invariants 1 and 4: clusters are no more than the tokens of each sequence, not of the batch."""
    call, valid = call_of(layout, bias=True), valid_keys(layout)[1]
    near(attend(method, call)[1, :, valid], dense(call)[1, :, valid])


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_gradients_of_a_padded_batch_are_finite_and_none_for_padding(method: ClusteredPlain) -> None:
    """Invariant 21, even where padding is NaN."""
    call, hidden = call_of("left"), ~valid_keys("left")[:, None, :, None]
    parts = [part.masked_fill(hidden, torch.nan).requires_grad_() for part in (call.query, call.key, call.value)]
    query, key, value = parts
    attend(method, replace(call, query=query, key=key, value=value)).square().sum().backward()
    for part in parts:
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()
        assert not part.grad[hidden.expand_as(part)].any()
        assert bool((part.grad[~hidden.expand_as(part)] != 0).all())


def test_inputs_stay_as_they_were() -> None:
    call = call_of("holes", bias=True)
    parts = [call.query, call.key, call.value, call.bias]
    copies = [part.clone() for part in parts if part is not None]
    attend(Clustered(clusters=4, k=5), call)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True) if part is not None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_shared_keys_are_the_valid_ones(layout: str) -> None:
    valid = valid_keys(layout)
    for form in masks(layout):
        assert torch.equal(shared_keys(form, LENGTH, LENGTH).expand(3, -1), valid)
    assert shared_keys(RowRanges.all_keys(5, 5), 5, 5).all()


# Refusals


def packed() -> FullMask:
    part = torch.arange(LENGTH) < 8
    return FullMask((part[:, None] == part).expand(1, 1, -1, -1))


def of_one_head() -> FullMask:
    visible = torch.ones(1, 4, LENGTH, LENGTH, dtype=torch.bool)
    visible[:, 2, :, 0] = False
    return FullMask(visible)


def one_row_less() -> FullMask:
    visible = torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    visible[2, 0, 7, 3] = False
    return FullMask(visible)


def shorter_end_of_one_sequence() -> RowRanges:
    whole = RowRanges.all_keys(LENGTH, LENGTH)
    last = whole.last.repeat(3, 1)
    last[1, -1] -= 1
    return RowRanges(whole.first, last)


REFUSED: dict[str, Visibility] = {
    "causal": RowRanges.causal(LENGTH, LENGTH),
    "causal mask": FullMask(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()),
    "window": RowRanges((torch.arange(LENGTH) - 3).clamp(min=0).unsqueeze(0), torch.full((1, LENGTH), LENGTH)),
    "packed": packed(),
    "one head differs": of_one_head(),
    "one row of one sequence": one_row_less(),
    "one end of one sequence": shorter_end_of_one_sequence(),
}


@pytest.mark.parametrize("method", [*METHOD_LIST, Clustered(min_length=100)], ids=str)
@pytest.mark.parametrize("seen", REFUSED.values(), ids=REFUSED)
def test_rows_that_differ_are_refused(seen: Visibility, method: ClusteredPlain) -> None:
    """Invariants 17 and 18: causal attention is not offered, but refused, whatever says it."""
    call = replace(self_attention(LENGTH, batch=3), visibility=seen)
    with pytest.raises(NotPatchableError, match="every query of a sequence to see the same keys"):
        method.attend(call)


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (9, 4), (4, 9)])
def test_queries_of_another_length_than_the_keys_are_refused(method: ClusteredPlain, queries: int, keys: int) -> None:
    """Invariants 17 and 18: a step of decoding with a cache, and cross-attention."""
    with pytest.raises(NotPatchableError, match="self-attention over a whole sequence, without a cache"):
        method.attend(attention_inputs("all", queries=queries, keys=keys))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_attention_sinks_are_refused(method: ClusteredPlain) -> None:
    with pytest.raises(NotPatchableError, match="sinks"):
        method.attend(self_attention(sinks=True))
