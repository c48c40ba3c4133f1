"""Kept keys come back as they were, in no more bytes than the smaller of two ways to write them takes."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.patcher.methods.kept_keys import Store, pack, smallest_integer, taken, unpack


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 255, 256, 257, 40_000])
def test_what_is_packed_comes_back(width: int, share: float) -> None:
    generator = torch.Generator().manual_seed(width)
    keep = torch.rand(2, 3, 5, width, generator=generator) < share
    keep[0, 0, 0, -1] = True
    packed = pack(keep)
    assert torch.equal(unpack(packed, keep.shape), keep)
    rows, size = 30, {1: 1, 7: 1, 8: 1, 9: 1, 255: 1, 256: 2, 257: 2, 40_000: 4}[width]
    bits, columns = rows * (-(-width // 8)), (int(keep.sum()) + rows) * size
    assert sum(part.nbytes for part in packed) == min(bits, columns)


@pytest.mark.parametrize("width", [5, 300])
def test_no_rows(width: int) -> None:
    keep = torch.zeros(2, 0, width, dtype=torch.bool)
    assert torch.equal(unpack(pack(keep), keep.shape), keep)


def test_integers_hold_what_they_are_for() -> None:
    assert [smallest_integer(n) for n in (255, 256, 32767, 32768, 2**31)] == [
        torch.uint8,
        torch.int16,
        torch.int16,
        torch.int32,
        torch.int64,
    ]


def test_a_store_gives_back_what_was_put_in() -> None:
    store = Store(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    parts = [torch.randint(100, (n % 13, 3), generator=generator).to(kinds[n % 4]) for n in range(200)]
    places = [store.add(part) for part in parts]
    block = store.whole()
    assert all(torch.equal(taken(block, *place), part) for place, part in zip(places, parts, strict=True))
    assert block.nbytes <= sum(part.nbytes for part in parts) + 8 * len(parts)
