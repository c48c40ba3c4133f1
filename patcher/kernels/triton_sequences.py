"""Sequences of a padded batch as the Triton kernels for clusters read them: one interval of tokens each."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.clustered import ClusteredPlain
from ..methods.visibility import RowRanges

# Programs that keep a GPU busy: two for each processor of the largest that there is.
PROGRAMS = 264


@dataclass(frozen=True)
class Sequences:
    """The tokens first[b] <= i < last[b] of each sequence, int64 [B or 1]; sequences of up to `short` stay dense."""

    first: Tensor
    last: Tensor
    short: int

    @staticmethod
    def of(inputs: AttentionInputs, method: ClusteredPlain) -> Sequences:
        """By what the first query of each sequence sees. With a cluster for every token, or every key refined, clustered
        attention is dense attention, so that sequences where that is so count as short."""
        ranges = inputs.visibility
        assert isinstance(ranges, RowRanges)
        short = max(method.clusters, method.refined, method.min_length - 1)
        return Sequences(ranges.first[:, 0], ranges.last[:, 0], min(short, inputs.key.shape[2]))

    @property
    def lengths(self) -> Tensor:
        """int64 [B or 1, 1]."""
        return (self.last - self.first).unsqueeze(1)

    @property
    def place(self) -> tuple[Tensor, Tensor, int]:
        """The arguments of `bounds`: where the numbers of one sequence lie, and how far from those of the next."""
        return self.first, self.last, self.first.stride(0) if len(self.first) > 1 else 0


def padded(width: int) -> int:
    """Elements of a row as a tile has them."""
    return max(16, triton.next_power_of_2(width))


def shares(tokens: int, tile: int, wanted: int) -> tuple[int, int]:
    """Into how many shares of how many tokens to cut a sequence, whole tiles each: about as many as wanted."""
    tiles = max(1, triton.cdiv(tokens, tile))
    share = triton.cdiv(tiles, max(1, min(wanted, tiles)))
    return triton.cdiv(tiles, share), share * tile


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
    out = tl.dot(high, right, input_precision="ieee")
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
