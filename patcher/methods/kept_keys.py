"""The kept keys of a chunk in few bytes, from the forward to the backward pass.

As columns, row after row, where few keys are kept: one to four bytes for each of them, and as many for each row. As
bits, eight keys to a byte, where that is less, and where it cannot be asked how many are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import asking

BITS = 8
ALIGNED = 8  # bytes, of the widest integer


def pack(keep: Tensor) -> tuple[Tensor, ...]:
    """bool [..., m] as its columns and the number of them in each row, or as its bits alone."""
    width = keep.shape[-1]
    small, eighth = smallest_integer(width), -(-width // BITS)
    counts = keep.sum(-1)
    if asking.answers(keep) and (int(counts.sum()) + counts.numel()) * small.itemsize < counts.numel() * eighth:
        return (keep.flatten().nonzero().squeeze(-1) % width).to(small), counts.to(small)
    # Byte j has the keys j, j + eighth, j + 2 eighth ...: whole blocks are shifted.
    blocks = torch.nn.functional.pad(keep, (0, BITS * eighth - width)).view(torch.uint8).unflatten(-1, (BITS, eighth))
    return ((blocks << _places(keep.device)).sum(-2, dtype=torch.uint8),)


def unpack(packed: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """What `pack` was given, of this shape."""
    if len(packed) == 1:
        blocks = (packed[0].unsqueeze(-2) >> _places(packed[0].device)) & 1
        return blocks.flatten(-2)[..., : shape[-1]].view(torch.bool)
    columns, counts = packed
    starts = torch.arange(counts.numel(), device=counts.device) * shape[-1]
    keep = torch.zeros(shape.numel(), dtype=torch.bool, device=columns.device)
    keep[starts.repeat_interleave(counts.flatten().long(), output_size=len(columns)) + columns] = True
    return keep.view(shape)


class Store:
    """Tensors one after the other in one growing block. Many small ones that stay, among large ones that go, would keep
    an allocator from using that room again."""

    def __init__(self, device: torch.device) -> None:
        self.block = torch.empty(0, dtype=torch.uint8, device=device)
        self.used = 0

    def add(self, tensor: Tensor) -> tuple[int, torch.dtype, torch.Size]:
        """Puts a copy in the store; gives its place, for `taken`."""
        place, end = self.used, self.used + tensor.nbytes
        if end > len(self.block):
            enlarged = self.block.new_empty(2 * end)
            enlarged[: len(self.block)] = self.block
            self.block = enlarged
        self.block[place:end] = tensor.flatten().view(torch.uint8)
        self.used = -(-end // ALIGNED) * ALIGNED
        return place, tensor.dtype, tensor.shape

    def whole(self) -> Tensor:
        """All that is in it, uint8."""
        return self.block[: self.used].clone()


def taken(block: Tensor, place: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """One of the tensors in a block that a store gave."""
    return block[place : place + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def smallest_integer(most: int) -> torch.dtype:
    """The smallest integer type that holds 0..most."""
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32, torch.int64) if most <= torch.iinfo(kind).max)


def _places(device: torch.device) -> Tensor:
    """0..7, one to a block."""
    return torch.arange(BITS, dtype=torch.uint8, device=device).unsqueeze(-1)
