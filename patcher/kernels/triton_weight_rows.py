"""A Linear's weight [d_model, d_ff] on a GPU as rows [d_ff, d_model]: a transposed copy that kernels keep up to date.

Whether the weight is still what was copied is asked on the GPU, by the kernel that runs before the rows are read: the
answer never comes to the host, which would have to wait for it.
"""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .weight_rows import copies, state_of

# Outputs that one program looks after: of each of their rows, and of each column, it compares some elements.
BAND = 128
RUN = 16  # elements side by side, at most: a sector of memory is 32 bytes
COPY_TILE = 64


@dataclass
class DeviceRows:
    """The copy, contiguous [d_ff, d_model], and per band the elements that tell whether it is out of date, which the
    kernel writes. state: of the weight that was copied. stream: on which that was."""

    rows: Tensor
    samples: Tensor
    state: tuple[Any, ...] | None = None
    stream: int = 0

    def is_of(self, weight: Tensor) -> bool:
        return (
            self.rows.device == weight.device
            and self.rows.dtype == weight.dtype
            and self.rows.shape == weight.shape[::-1]
        )

    def is_behind(self, weight: Tensor) -> bool:
        """Whether all has to be copied: the weight was written to, or another stream may still be at the copy.

        No other stream is at work when the recording of a CUDA graph begins.
        """
        return self.state != state_of(weight) or (not recording() and self.stream != stream_of(weight))

    def launched(self, weight: Tensor) -> None:
        """Remembers that a kernel brings the copy up to date. One that is recorded does nothing yet."""
        if not recording():
            self.state, self.stream = state_of(weight), stream_of(weight)


def recording() -> bool:
    """Whether launches are recorded as a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def stream_of(weight: Tensor) -> int:
    """The stream of launches on the device of a weight; 0 without a GPU."""
    if not (weight.is_cuda and torch.cuda.is_initialized()):
        return 0
    return int(torch.cuda.current_stream(weight.device).cuda_stream)


def device_rows(weight: Tensor) -> DeviceRows:
    """The copy of a weight [d_model, d_ff], which is without content where it is new.

    It stays where it is as long as the weight keeps its shape, type and device, because CUDA graphs hold its address.
    """
    copy = copies.get(weight)
    if not isinstance(copy, DeviceRows) or not copy.is_of(weight):
        d_model, d_ff = weight.shape
        rows = torch.empty((d_ff, d_model), dtype=weight.dtype, device=weight.device)
        samples = torch.empty((bands_of(d_model), max(d_ff, BAND)), dtype=weight.dtype, device=weight.device)
        copies[weight] = copy = DeviceRows(rows, samples)
    return copy


def bands_of(d_model: int) -> int:
    return (d_model + BAND - 1) // BAND


def run_length(d_ff: int) -> int:
    """Elements that are compared side by side, so few that every row of a band has its turn."""
    return min(max(d_ff // BAND, 1), RUN)


@triton.jit
def renew_band(
    band,
    weight,
    row_stride,
    column_stride,
    rows,
    samples,
    d_model,
    d_ff,
    run,
    written,
    BAND: tl.constexpr,
    SAMPLES: tl.constexpr,
    COPY_TILE: tl.constexpr,
):
    """Copies BAND rows of the weight into as many columns of `rows` if they were `written` or a sample has changed."""
    first = band * BAND
    height = tl.minimum(d_model - first, BAND)
    count = tl.maximum(d_ff, BAND)
    start_of_band = weight + first.to(tl.int64) * row_stride
    samples += band.to(tl.int64) * count
    different = tl.zeros([SAMPLES], tl.int32)
    for start in range(0, count, SAMPLES):
        sample = start + tl.arange(0, SAMPLES)
        row, column = (sample // run) % height, sample % d_ff
        at = start_of_band + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
        now = tl.load(at, sample < count, other=0)
        before = tl.load(samples + sample, sample < count, other=0)
        if now.dtype.primitive_bitwidth == 16:  # as integers, so that a NaN is like itself
            changed = now.to(tl.int16, bitcast=True) != before.to(tl.int16, bitcast=True)
        else:
            changed = now.to(tl.int32, bitcast=True) != before.to(tl.int32, bitcast=True)
        different |= changed.to(tl.int32)
    if tl.max(different, 0) + written > 0:
        for start in range(0, count, SAMPLES):
            sample = start + tl.arange(0, SAMPLES)
            row, column = (sample // run) % height, sample % d_ff
            at = start_of_band + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
            tl.store(samples + sample, tl.load(at, sample < count), sample < count)
        output = tl.arange(0, BAND)
        for start in range(0, d_ff, COPY_TILE):
            inner = start + tl.arange(0, COPY_TILE)
            inside = (inner < d_ff)[:, None] & (output < height)[None, :]
            at = output.to(tl.int64)[None, :] * row_stride + inner.to(tl.int64)[:, None] * column_stride
            tile = tl.load(start_of_band + at, inside)
            tl.store(rows + inner.to(tl.int64)[:, None] * d_model + (first + output)[None, :], tile, inside)
