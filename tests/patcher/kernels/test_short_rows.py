"""The first rows of a causal call, too short for their method, by torch's own attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.kernels.short_rows import fill_short_rows
from hf_sparsify.patcher.methods import FullMask, RowRanges, TopK
from hf_sparsify.patcher.methods.chunk import AttentionInputs
from tiny_models import attention_inputs
from torch import Tensor

LENGTH = 20


def example(groups: int = 2, width: int = 8, **fields: Any) -> AttentionInputs:
    return attention_inputs(
        "causal", groups=groups, queries=LENGTH, keys=LENGTH, width=width, dtype=torch.float32, **fields
    )


def sevens(inputs: AttentionInputs) -> Tensor:
    """An output that nothing was written to."""
    return torch.full((*inputs.query.shape[:3], inputs.value.shape[3]), 7.0)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("min_length", "filled"), [(0, 0), (1, 0), (2, 1), (9, 8), (20, 19), (21, 20), (500, 20)])
def test_rows_that_see_fewer_keys_are_filled(min_length: int, filled: int, groups: int) -> None:
    inputs = example(groups)
    out = sevens(inputs)
    assert fill_short_rows(out, inputs, min_length) == filled
    dense = TopK(keep=1.0).attend(inputs)[0]
    torch.testing.assert_close(out[:, :, :filled], dense[:, :, :filled], rtol=1e-5, atol=1e-6)
    assert bool((out[:, :, filled:] == 7).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"visibility": RowRanges.all_keys(LENGTH, LENGTH)},
        {"visibility": RowRanges(RowRanges.causal(LENGTH, LENGTH).last - 1, RowRanges.causal(LENGTH, LENGTH).last)},
        {"visibility": RowRanges.causal(LENGTH, LENGTH + 1)},
        {"visibility": FullMask(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril())},
        {"bias": torch.zeros(1, 4, LENGTH, LENGTH)},
        {"softcap": 3.0},
        {"sinks": torch.zeros(4)},
    ],
    ids=["all keys", "one key each", "a cache", "a mask", "a bias", "a soft cap", "sinks"],
)
def test_all_but_the_plain_case_is_left_alone(changes: dict[str, Any]) -> None:
    inputs = replace(example(), **changes)
    out = sevens(inputs)
    assert fill_short_rows(out, inputs, 9) == 0
    assert bool((out == 7).all())


def test_padding_in_one_sequence_is_left_alone() -> None:
    inputs = attention_inputs("left", queries=LENGTH, keys=LENGTH)
    assert fill_short_rows(sevens(inputs), inputs, 9) == 0


@pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")
@pytest.mark.parametrize("min_length", [0, 9, LENGTH, LENGTH + 1])
def test_the_kernel_goes_on_after_the_short_rows(min_length: int) -> None:
    values = torch.randn(2, 2, LENGTH, 16, generator=torch.Generator().manual_seed(3))
    inputs = replace(example(), value=values)
    method = TopK(k=3, min_length=min_length, compensation="sdc+vmc")
    out, _ = rows.attend(inputs, method)
    torch.testing.assert_close(out, method.attend(inputs)[0], rtol=1e-5, atol=1e-5)
    counted, counts = rows.attend(inputs, method, count=True)
    torch.testing.assert_close(out, counted, rtol=1e-5, atol=1e-5)
    assert counts is not None
    expected = [length if length < min_length else min(length, 3) for length in range(1, LENGTH + 1)]
    assert counts.kept.tolist() == [[expected] * 4] * 2


@pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_value_spoils_no_earlier_row(broken: float) -> None:
    values = torch.randn(2, 2, LENGTH, 16, generator=torch.Generator().manual_seed(3))
    inputs, method = replace(example(), value=values), TopK(k=3, min_length=12)
    out, _ = rows.attend(inputs, method)
    inputs.value[:, :, 5] = broken
    again, _ = rows.attend(inputs, method)
    torch.testing.assert_close(again[:, :, :5], out[:, :, :5], rtol=1e-5, atol=1e-5)
    assert not bool(torch.isfinite(again[:, :, 5:11]).any())
