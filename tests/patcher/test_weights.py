"""The fingerprint of weights: the same for the same values, another for any single change."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_sparsify.patcher.weights import weights_fingerprint
from torch import nn


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.Linear(30, 7)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_has_the_same_fingerprint(dtype: torch.dtype) -> None:
    first = model(dtype)
    assert weights_fingerprint(first) == weights_fingerprint(copy.deepcopy(first))
    assert len(weights_fingerprint(first)) == 64


@pytest.mark.parametrize("place", [(0, 0), (17, 23), (29, 39)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smallest_change_of_one_value_is_seen(dtype: torch.dtype, place: tuple[int, int]) -> None:
    changed = model(dtype)
    before = weights_fingerprint(changed)
    with torch.no_grad():
        bits = changed[0].weight.view({4: torch.int32, 2: torch.int16}[changed[0].weight.element_size()])
        bits[place] += 1
    assert weights_fingerprint(changed) != before


def test_buffers_types_names_and_order_count() -> None:
    seen = {weights_fingerprint(model()), weights_fingerprint(model(torch.float64))}
    buffers = model()
    buffers[1].running_mean += 1
    seen.add(weights_fingerprint(buffers))
    moved = model()
    with torch.no_grad():
        moved[0].weight.copy_(moved[0].weight.flip(0))
    seen.add(weights_fingerprint(moved))
    seen.add(weights_fingerprint(nn.ModuleDict({"a": model()})))
    assert len(seen) == 5


def test_odd_tensors_are_taken() -> None:
    odd = nn.Module()
    odd.register_buffer("empty", torch.empty(0))
    odd.register_buffer("scalar", torch.tensor(3.0))
    odd.register_buffer("flags", torch.tensor([True, False]))
    odd.register_buffer("bytes", torch.arange(5, dtype=torch.uint8))
    odd.register_buffer("strided", torch.arange(12.0).reshape(3, 4).t())
    odd.register_buffer("complex", torch.tensor([1 + 2j]))
    before = weights_fingerprint(odd)
    odd.strided[1, 1] = 9
    assert weights_fingerprint(odd) != before
