"""The down-projection of kept activations on a GPU, for few tokens: only their rows of the weight are read.

Three launches. The first chooses what each token keeps, one program a token, while other programs look whether the
transposed copy of the weight is up to date. The second adds up rows, with the k rows of a token split among enough
programs for the whole GPU; the third adds up those parts and the bias. Nothing waits for the GPU.
"""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UsageError
from ..methods.top_k_feed_forward import TopKFeedForward
from .feed_forward import shared_refusal
from .triton_arguments import DTYPES
from .triton_library import obstacle, runs_on
from .triton_sizes import cdiv
from .triton_weight_rows import (
    BAND,
    COPY_TILE,
    DeviceRows,
    bands_of,
    device_rows,
    renew_band,
    run_length,
)

NAME = "triton"  # of this way through a call, for `paths`

MOST_ACTIVATIONS = 2**24  # positions are 32 bits wide, and blocks beyond the last do not overflow
# Tokens read rows of their own, the dense product reads each once and at full speed: so much less has to be read. By
# bytes alone; not measured.
FEWER_ROWS = 2
# Bytes: some ten microseconds of reading at 3 TB/s, which is what three launches may cost; not measured.
LEAST_SAVED = 2**25
# A token's activations, read again for each bit of the limit, from the nearest cache.
SELECT_BLOCK, SELECT_WARPS = 4096, 8
# 256 bytes of a bf16 row side by side; 8 KiB under way in each program.
ROWS, COLUMNS, WARPS = 32, 128, 4
PROGRAMS = 528  # four for each multiprocessor of the largest GPUs
PARTS = 16  # that are added up side by side


def refusal(hidden: Tensor, rows: Tensor, method: TopKFeedForward) -> str | None:
    """Why a call goes the torch way, in a few words; None if the kernels take it. Looks into no tensor.

    hidden: [..., d_ff]. rows: the weight as [d_ff, d_model], however it lies in memory.
    """
    if (reason := obstacle()) is not None:
        return reason
    if not runs_on(hidden.device) or hidden.device != rows.device:
        return f"on {hidden.device.type}"
    shared = shared_refusal(hidden, rows, method, DTYPES, MOST_ACTIVATIONS)
    if shared is not None:
        return shared
    d_ff, d_model = rows.shape
    spared = d_ff - hidden.numel() // d_ff * method.width(d_ff) * FEWER_ROWS
    if spared < 0:
        return "as many rows kept as the dense product reads"
    if spared * d_model * rows.element_size() < LEAST_SAVED:
        return "too few bytes left out"
    return None


def prepare(weight: Tensor, method: TopKFeedForward) -> None:
    """Makes room for the copy of a weight [d_model, d_ff] if calls of one token will read it.

    A call that makes a CUDA graph may leave nothing in that graph's memory. After a patched model was copied or moved
    to another device, it is the first call that makes room.
    """
    with torch.no_grad():
        if refusal(weight.new_empty(1, weight.shape[1]), weight.t(), method) is None and weight.stride(0) != 1:
            device_rows(weight)


def project_kept(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, is_rows: bool, method: TopKFeedForward, refused: bool
) -> Tensor | None:
    """As feed_forward.project_kept: [..., d_ff] -> [..., d_model], or None where the dense product is to be made."""
    if refused:
        return None
    return project(hidden, weight, bias, method.width(hidden.shape[-1]), is_rows=is_rows)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, k: int, *, is_rows: bool = False) -> Tensor:
    """[..., d_ff] -> [..., d_model] of each token's k activations of largest magnitude, the first among equals.

    weight: [d_model, d_ff], or [d_ff, d_model] where is_rows. The former is read from a transposed copy of it, made at
    the first call. A NaN spoils its token's whole output; zeros do not meet a weight. Sums are float32, whatever is
    stored. Raises UsageError where hidden and weight do not go together.
    """
    rows = weight if is_rows else weight.t()
    d_ff, d_model = rows.shape
    if hidden.shape[-1] != d_ff or hidden.dtype != rows.dtype or not 0 < k <= d_ff:
        raise UsageError(f"activations {tuple(hidden.shape)} and a weight {tuple(rows.shape)} do not go with k = {k}")
    out = torch.empty((*hidden.shape[:-1], d_model), dtype=hidden.dtype, device=hidden.device)
    if not out.numel():
        return out
    tokens = hidden.detach().reshape(-1, d_ff)
    tokens = tokens if tokens.stride(1) == 1 else tokens.contiguous()
    with torch.cuda.device_of(hidden):
        if is_rows or rows.stride(1) == 1:
            rows = rows.detach() if rows.stride(1) == 1 else rows.detach().contiguous()
            kept = _select(tokens, k)
        else:
            copy = device_rows(weight)
            rows, kept = copy.rows, _select(tokens, k, weight.detach(), copy, copy.is_behind(weight))
            copy.launched(weight)
        _add_up(kept, rows, None if bias is None else bias.detach().contiguous(), out.view(-1, d_model))
    return out


class Kept(NamedTuple):
    """Positions int32 and activations float32 of what each token keeps, in any order, both [tokens, k]."""

    positions: Tensor
    activations: Tensor


def _select(
    tokens: Tensor, k: int, weight: Tensor | None = None, copy: DeviceRows | None = None, written: bool = False
) -> Kept:
    """What each of the tokens [n, d_ff] keeps; and on the way renews the copy of a weight where that has changed."""
    count, d_ff = tokens.shape
    kept = Kept(
        torch.empty((count, k), dtype=torch.int32, device=tokens.device),
        torch.empty((count, k), dtype=torch.float32, device=tokens.device),
    )
    watched: tuple[Any, ...] = (tokens, 0, 0, tokens, tokens, 0, 0, 0)  # nothing
    bands = 0
    if weight is not None and copy is not None:
        d_model = weight.shape[0]
        watched = (weight, *weight.stride(), copy.rows, copy.samples, d_model, run_length(d_ff), int(written))
        bands = bands_of(d_model)
    _select_and_renew[(count + bands,)](
        *(tokens, tokens.stride(0), *kept, count, d_ff, k),
        *watched,
        BLOCK=SELECT_BLOCK,
        BAND=BAND,
        COPY_TILE=COPY_TILE,
        num_warps=SELECT_WARPS,
    )
    return kept


def _add_up(kept: Kept, rows: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out[token] = bias + the sum of the token's kept activations times their rows [d_ff, d_model]."""
    (tokens, d_model), k = out.shape, kept.positions.shape[1]
    columns = cdiv(d_model, COLUMNS)
    wanted = min(cdiv(PROGRAMS, tokens * columns), cdiv(k, ROWS))
    share = cdiv(cdiv(k, wanted), ROWS) * ROWS
    parts = cdiv(k, share)
    sums = torch.empty((parts, tokens, d_model), dtype=torch.float32, device=out.device)
    _add_rows[(tokens, columns, parts)](
        *(*kept, rows, rows.stride(0), sums, k, share, d_model), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS
    )
    _add_parts[(tokens, columns)](*(sums, bias, out, parts, d_model), PARTS=PARTS, COLUMNS=COLUMNS, num_warps=WARPS)


@triton.jit(do_not_specialize=["count", "k", "run", "written"])
def _select_and_renew(
    hidden,
    hidden_stride,
    positions,
    activations,
    count,
    d_ff,
    k,
    weight,
    weight_row,
    weight_column,
    rows,
    samples,
    d_model,
    run,
    written,
    BLOCK: tl.constexpr,
    BAND: tl.constexpr,
    COPY_TILE: tl.constexpr,
):
    program = tl.program_id(0)
    if program < count:
        token = program.to(tl.int64)
        _select_token(hidden + token * hidden_stride, positions + token * k, activations + token * k, d_ff, k, BLOCK)
    else:
        band = program - count
        renew_band(
            band, weight, weight_row, weight_column, rows, samples, d_model, d_ff, run, written, BAND, BLOCK, COPY_TILE
        )


@triton.jit
def _magnitudes(hidden, index, d_ff):
    """As integers in the order of the magnitudes, a NaN above all; -1 beyond the last."""
    number = tl.load(hidden + index, index < d_ff, other=0)
    if number.dtype.primitive_bitwidth == 16:
        magnitude = number.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        magnitude = number.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(index < d_ff, magnitude, -1)


@triton.jit
def _select_token(hidden, positions, activations, d_ff, k, BLOCK: tl.constexpr):
    """Builds the k-th largest magnitude bit by bit, then writes down what is above it and the first of its equals."""
    BITS: tl.constexpr = 15 if hidden.dtype.element_ty.primitive_bitwidth == 16 else 31
    limit = 0
    above = 0
    for step in range(BITS):
        candidate = limit | (1 << (BITS - 1 - step))
        found = tl.zeros([BLOCK], tl.int32)
        for start in range(0, d_ff, BLOCK):
            found += (_magnitudes(hidden, start + tl.arange(0, BLOCK), d_ff) >= candidate).to(tl.int32)
        reached = tl.sum(found, 0)
        if reached >= k:
            limit = candidate
        else:  # the last of these is the limit's successor
            above = reached
    higher_so_far = 0
    equal_so_far = above
    for start in range(0, d_ff, BLOCK):
        index = start + tl.arange(0, BLOCK)
        magnitude = _magnitudes(hidden, index, d_ff)
        higher, equal = (magnitude > limit).to(tl.int32), (magnitude == limit).to(tl.int32)
        higher_place = higher_so_far + tl.cumsum(higher, 0) - 1
        equal_place = equal_so_far + tl.cumsum(equal, 0) - 1
        place = tl.where(higher > 0, higher_place, equal_place)
        kept = (higher > 0) | ((equal > 0) & (equal_place < k))
        tl.store(positions + place, index, kept)
        tl.store(activations + place, tl.load(hidden + index, kept).to(tl.float32), kept)
        higher_so_far += tl.sum(higher, 0)
        equal_so_far += tl.sum(equal, 0)


@triton.jit(do_not_specialize=["k", "share"])
def _add_rows(
    positions,
    activations,
    rows,
    row_stride,
    sums,
    k,
    share,
    d_model,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One token's sum over a share of its rows, for some columns: into sums [parts, tokens, d_model]."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    end = tl.minimum((part + 1) * share, k)
    for start in range(part * share, end, ROWS):
        place = start + tl.arange(0, ROWS)
        position = tl.load(positions + token * k + place, place < end, other=0).to(tl.int64)
        activation = tl.load(activations + token * k + place, place < end, other=0)
        read = (activation != 0)[:, None] & (column < d_model)[None, :]
        total += activation[:, None] * tl.load(rows + position[:, None] * row_stride + column[None, :], read, other=0)
    at = sums + (part * tl.num_programs(0) + token) * d_model + column
    tl.store(at, tl.sum(total, 0), column < d_model)


@triton.jit(do_not_specialize=["parts"])
def _add_parts(sums, bias, out, parts, d_model, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """The parts of sums [parts, tokens, d_model] and the bias, rounded into out [tokens, d_model]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([PARTS, COLUMNS], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        at = sums + (part * tl.num_programs(0) + token)[:, None] * d_model + column[None, :]
        total += tl.load(at, (part < parts)[:, None] & (column < d_model)[None, :], other=0)
    whole = tl.sum(total, 0)
    if bias is not None:
        whole += tl.load(bias + column, column < d_model).to(tl.float32)
    tl.store(out + token * d_model + column, whole.to(out.dtype.element_ty), column < d_model)
