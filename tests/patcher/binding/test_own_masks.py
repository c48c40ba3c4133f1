"""Masks that a model brings as tensors of its own: what they show, add and are refused for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.masks import read_mask
from hf_sparsify.patcher.methods import FullMask
from tiny_models import visible_keys


@pytest.mark.parametrize("mask", ["mask", torch.ones(2, 5), torch.ones(2, 5, 5)], ids=["text", "2-D", "3-D"])
def test_masks_of_another_form_are_refused(mask: Any) -> None:
    with pytest.raises(NotPatchableError, match="not supported"):
        read_mask(mask, 5, 5, causal=True)


def test_boolean_masks_are_taken_as_they_are() -> None:
    mask = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    seen, added = read_mask(mask, 4, 5, causal=True)
    assert added is None
    assert isinstance(seen, FullMask)
    assert torch.equal(seen.visible, mask[..., :5])
    row, _ = read_mask(mask[:, :, :1], 4, 6, causal=True)
    assert isinstance(row, FullMask)
    assert torch.equal(row.visible, mask[:, :, :1].expand(2, 1, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hidden_by", ["-inf", "smallest", "-1e4"])
def test_float_masks_are_split_into_visible_and_added(dtype: torch.dtype, hidden_by: str) -> None:
    value = {"-inf": -torch.inf, "smallest": torch.finfo(dtype).min, "-1e4": -1e4}[hidden_by]
    mask = torch.tensor([[0.0, value, -3.5], [value, value, value]]).to(dtype).view(1, 1, 2, 3)
    seen, added = read_mask(mask, 2, 3, causal=True)
    assert isinstance(seen, FullMask)
    assert seen.visible[0, 0].tolist() == [[True, False, True], [False, False, False]]
    assert added is not None
    assert added[0, 0].tolist() == [[0.0, 0.0, -3.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("dtype", "keys"), [(torch.int64, 3), (torch.int64, 4), (torch.int32, 4), (torch.uint8, 4)])
def test_masks_of_whole_numbers_never_show_what_they_hide(dtype: torch.dtype, keys: int) -> None:
    mask = torch.ones(1, 1, keys, keys).tril().to(dtype)
    try:
        seen, _ = read_mask(mask, keys, keys, causal=True)
    except NotPatchableError:
        return
    assert torch.equal(visible_keys(seen, 1, 1, keys, keys), mask.bool())
