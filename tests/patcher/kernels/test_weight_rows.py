"""Transposed copies of weights: right after every change, made once, and gone with their weight."""

from __future__ import annotations

import gc

import pytest
import torch
from hf_sparsify.patcher.kernels import weight_rows as module
from hf_sparsify.patcher.kernels.weight_rows import copies, forget, weight_rows
from torch import Tensor, nn

SHAPES = [(12, 40), (40, 12), (7, 7), (1, 9), (9, 1), (5, 13)]


def right(weight: Tensor) -> bool:
    """Whether the rows are those of the weight as it is."""
    rows = weight_rows(weight)
    return rows.is_contiguous() and torch.equal(rows, weight.detach().t())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_a_change_of_any_row_or_column_is_seen(
    shape: tuple[int, int], library: bool, strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setattr(module, "native", lambda: None)
    weight = torch.randn(shape[0], 2 * shape[1])[:, ::2] if strided else torch.randn(shape)
    parameter = nn.Parameter(weight)
    for part in (*parameter.data, *parameter.data.t()):
        before = part.clone()
        assert right(parameter)
        part += 1  # through .data, which leaves no trace
        assert right(parameter)
        part.copy_(before)


def test_unchanged_weights_are_copied_once() -> None:
    weight = torch.randn(12, 40)
    rows = weight_rows(weight)
    assert weight_rows(weight) is rows
    weight += 1
    assert right(weight)
    assert weight_rows(weight) is not rows


def test_a_weight_that_lies_as_rows_is_not_copied() -> None:
    weight = torch.randn(40, 12).t()
    assert weight_rows(weight).data_ptr() == weight.data_ptr()
    assert weight not in copies


def test_a_copy_goes_with_its_weight_or_when_it_is_told_to() -> None:
    gc.collect()
    before = len(copies)
    weights = [nn.Parameter(torch.randn(12, 40)) for _ in range(3)]
    for weight in weights:
        weight_rows(weight)
    assert len(copies) == before + 3
    forget(weights[0])
    forget(weights[0])
    assert len(copies) == before + 2
    del weights, weight
    assert len(copies) == before
