"""Sequences of a padded batch as the Triton kernels for clusters read them: one interval of tokens each."""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.clustered import ClusteredPlain
from ..methods.visibility import RowRanges
from .triton_sizes import cdiv

# Of float32 products: three of TF32 numbers on tensor cores have float32's digits.
PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")


@dataclass(frozen=True)
class Sequences:
    """The tokens first[b] <= i < last[b] of each sequence, int64 [B or 1], both contiguous and of one size; sequences
    of up to `short` stay dense."""

    first: Tensor
    last: Tensor
    short: int

    @staticmethod
    def of(ranges: RowRanges, method: ClusteredPlain, tokens: int) -> Sequences:
        """By what the first query of each sequence sees; an assertion on the device says that the others see the same.

        With a cluster for every token, or every key refined, clustered attention is dense: such sequences are short.
        """
        same = (ranges.first == ranges.first[:, :1]) & (ranges.last == ranges.last[:, :1])
        torch._assert_async(same.all(), "clustered attention needs every query of a sequence to see the same keys")
        short = max(method.clusters, method.refined, method.min_length - 1)
        first, last = torch.broadcast_tensors(ranges.first[:, 0], ranges.last[:, 0])
        return Sequences(first.contiguous(), last.contiguous(), min(short, tokens))

    @property
    def lengths(self) -> Tensor:
        """int64 [B or 1, 1, 1]."""
        return (self.last - self.first)[:, None, None]

    @property
    def place(self) -> tuple[Tensor, Tensor, int]:
        """The arguments of `bounds`: where the numbers of one sequence lie, and how far from those of the next."""
        return self.first, self.last, 1 if len(self.first) > 1 else 0


def tile(row_bytes: int, most: int = 64) -> int:
    """How many rows to work on at a time: 16 KiB of them, which leaves registers and shared memory to the rest."""
    return max(16, min(most, 2**14 // row_bytes))


def shares(tokens: int, tile: int, wanted: int) -> tuple[int, int]:
    """Into how many shares of how many tokens to cut a sequence, whole tiles each: about as many as wanted."""
    tiles = max(1, cdiv(tokens, tile))
    share = cdiv(tiles, max(1, min(wanted, tiles)))
    return cdiv(tiles, share), share * tile


@triton.jit
def bounds(first, last, stride, sequence):
    """A sequence has the tokens low <= i < high, int32."""
    low = tl.load(first + sequence * stride).to(tl.int32)
    return low, tl.load(last + sequence * stride).to(tl.int32)


@triton.jit
def load_rows(base, stride, rows, seen, columns, WIDTH: tl.constexpr):
    """Columns of some rows of a matrix; zeros for rows that are not seen, whatever stands there."""
    places = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(base + places, mask=seen[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def split_dot(left, right):
    """float32 @ float32, bfloat16 or float16, to about float32's digits: `left` as two numbers of the other dtype."""
    high = left.to(right.dtype)
    out = tl.dot(high, right, input_precision=PRECISION)
    if right.dtype != tl.float32:
        out = tl.dot((left - high.to(tl.float32)).to(right.dtype), right, out)
    return out


@triton.jit
def capped(scores, softcap, CAPPED: tl.constexpr):
    """softcap * tanh(scores / softcap), if asked for."""
    if CAPPED:
        scores = softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))
    return scores


@triton.jit
def finite(top):
    """A maximum as the origin of exponentials: 0 where nothing was seen."""
    return tl.where(top == float("-inf"), 0.0, top)
