"""What the Triton kernels of top-k and top-theta share: tiles of rows, their scores, and what is known of each row.

The rows of one KV head lie side by side: row r is query r // GROUP of the chunk and head r % GROUP of those that share
the KV head, so that a tile of rows reads K and V once. A chunk is the queries start .. start + count of a call; its
rows are numbered (batch, head, query) in everything that is handed from kernel to kernel.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Place(NamedTuple):
    """Where a tensor [B, H or G, rows, ...] lies: its first element and its strides; the last one is 1."""

    at: Any
    batch: Any
    head: Any
    row: Any


class Matrix(NamedTuple):
    """Where a tensor [B, H, q, n] lies, with its last stride too."""

    at: Any
    batch: Any
    head: Any
    row: Any
    column: Any


class Ranges(NamedTuple):
    """First and last key of each query, int64, with their strides."""

    first: Any
    last: Any
    batch: Any
    row: Any


class Call(NamedTuple):
    """The inputs of a call. mask (bool), with lengths (int64): what of its range a row sees. bias: Matrix. What is not
    there is None."""

    query: Any
    key: Any
    value: Any
    ranges: Any
    mask: Any
    lengths: Any
    bias: Any
    sinks: Any
    scale: Any
    softcap: Any
    heads: Any


class Table(NamedTuple):
    """Thresholds of a module: `columns` logarithms of row lengths, theta and dropped mass (or None) [H, columns], all
    float32 and contiguous, and the range of row lengths that they hold for, as floats."""

    lengths: Any
    theta: Any
    dropped: Any
    columns: Any
    shortest: Any
    longest: Any


class Budget(NamedTuple):
    """Kept keys of a row (k, or 0 and a fraction), as in patcher/methods, and a Table, or None."""

    k: Any
    numerator: Any
    denominator: Any
    min_length: Any
    table: Any


class Parts(NamedTuple):
    """Of each split and row, [splits, rows]: highest score, sum of exp(score - highest), first key that has it."""

    top: Any
    total: Any
    best: Any


@triton.jit
def program(splits, count, GROUP: tl.constexpr, M: tl.constexpr):
    """What this program works on: (split, tile, KV head over all sequences). Late tiles, which see more, come first."""
    tiles = tl.cdiv(count * GROUP, M)
    pid = tl.program_id(0)
    return pid % splits, tiles - 1 - (pid // splits) % tiles, pid // splits // tiles


@triton.jit
def tile_rows(call, start, count, tile, pair, GROUP: tl.constexpr, M: tl.constexpr):
    """Sequence and KV head, and of the rows [M] of a tile: query of the chunk, head, number, and whether it is one."""
    groups = call.heads // GROUP
    batch, group = (pair // groups).to(tl.int64), (pair % groups).to(tl.int64)
    row = tile * M + tl.arange(0, M)
    query, head = row // GROUP, group * GROUP + row % GROUP
    number = (batch * call.heads + head) * count + query
    return batch, group, query, head, number, query < count


@triton.jit
def row_ranges(call, batch, query, real):
    """First and last key [M] of the rows of a tile; a mask says more of them. query: of the call, not of the chunk."""
    at = batch * call.ranges.batch + query * call.ranges.row
    first = tl.load(call.ranges.first + at, mask=real, other=0).to(tl.int32)
    last = tl.load(call.ranges.last + at, mask=real, other=0).to(tl.int32)
    return first, last


@triton.jit
def key_range(first, last, split, splits, N: tl.constexpr):
    """The keys that a split of a tile has to see: of those that its rows see."""
    seeing = last > first
    low = tl.min(tl.where(seeing, first, 2147483647), 0)
    high = tl.max(tl.where(seeing, last, 0), 0)
    low = tl.minimum(low, high)
    share = tl.cdiv(tl.cdiv(high - low, splits), N) * N
    begin = low + split * share
    return begin, tl.minimum(begin + share, high)


@triton.jit
def load_rows(place, batch, head, row, mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [M, BLOCK] of a tensor, zeros beyond its width."""
    dims = tl.arange(0, BLOCK)
    at = place.at + (batch * place.batch + head * place.head + row * place.row)[:, None] + dims[None, :]
    return tl.load(at, mask=mask[:, None] & (dims < WIDTH)[None, :], other=0.0)


@triton.jit
def score_block(
    call, q, batch, group, head, query, first, last, at, end, WIDTH: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr
):
    """Scores float32 [M, N] of the keys at .. at + N, -inf where a row may not look. q: [M, BLOCK]."""
    dims, offsets = tl.arange(0, BLOCK), tl.arange(0, N)
    columns = at + offsets
    base = call.key.at + batch * call.key.batch + group * call.key.head + tl.cast(at, tl.int64) * call.key.row
    inside = (dims < WIDTH)[:, None] & (columns < end)[None, :]
    k = tl.load(base + dims[:, None] + offsets[None, :] * call.key.row, mask=inside, other=0.0)
    scores = tl.dot(q, k, input_precision="ieee") * call.scale
    visible = (columns[None, :] >= first[:, None]) & (columns[None, :] < last[:, None]) & (columns < end)[None, :]
    if call.mask is not None:
        mask = call.mask
        row = (batch * mask.batch + head * mask.head + query.to(tl.int64) * mask.row)[:, None]
        visible &= tl.load(mask.at + row + columns[None, :].to(tl.int64) * mask.column, mask=visible, other=0) != 0
    if call.bias is not None:
        bias = call.bias
        row = (batch * bias.batch + head * bias.head + query.to(tl.int64) * bias.row)[:, None]
        at_bias = bias.at + row + columns[None, :].to(tl.int64) * bias.column
        scores += tl.load(at_bias, mask=visible, other=0.0).to(tl.float32)
    if call.softcap is not None:
        scores = (2 * tl.sigmoid(2 * scores / call.softcap) - 1) * call.softcap  # tanh
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def row_budget(call, budget, batch, head, query, first, last, real):
    """Visible keys of each row, and whether it has to drop some."""
    if call.lengths is not None:
        lengths = call.lengths
        at = batch * lengths.batch + head * lengths.head + query * lengths.row
        length = tl.load(lengths.at + at, mask=real, other=0)
    else:
        length = tl.maximum(last - first, 0).to(tl.int64)
    if budget.k > 0:
        k = tl.minimum(length, budget.k)
    else:
        k = (length * budget.numerator + budget.denominator - 1) // budget.denominator
        k = tl.minimum(tl.maximum(k, 1), length)
    k = tl.where(length < budget.min_length, length, k)
    return length, k


@triton.jit
def by_length(table, numbers, head, length, real):
    """A number of a table [H, columns] for rows of a length, between two columns linear in its logarithm; NaN outside
    the table's range. As ModuleThresholds.lookup."""
    wanted = tl.log(tl.maximum(length, 1).to(tl.float32))
    right = tl.zeros_like(length).to(tl.int32)
    for column in range(table.columns):
        right += (tl.load(table.lengths + column) < wanted).to(tl.int32)
    right = tl.minimum(tl.maximum(right, 1), table.columns - 1)
    left = tl.maximum(right - 1, 0)
    below, above = tl.load(table.lengths + left), tl.load(table.lengths + right)
    share = tl.minimum(tl.maximum((wanted - below) / tl.maximum(above - below, 1e-12), 0.0), 1.0)
    at = numbers + head * table.columns
    low = tl.load(at + left, mask=real, other=0.0)
    number = low + share * (tl.load(at + right, mask=real, other=0.0) - low)
    known = (length.to(tl.float32) >= table.shortest) & (length.to(tl.float32) <= table.longest) & real
    return tl.where(known, number, float("nan"))


@triton.jit
def row_theta(budget, head, length, real):
    """The threshold of each row, NaN where it has none."""
    theta = tl.full(length.shape, float("nan"), tl.float32)
    if budget.table is not None:
        theta = by_length(budget.table, budget.table.theta, head, length, real)
    return theta


@triton.jit
def gathered(parts, number, real, rows, splits, TOTAL: tl.constexpr, BEST: tl.constexpr):
    """Highest score, sum of exp(score - highest) and first key that has it, of whole rows."""
    top = tl.load(parts.top + number, mask=real, other=float("-inf"))
    total, best = tl.zeros_like(top), tl.zeros_like(number).to(tl.int32)
    if TOTAL:
        total = tl.load(parts.total + number, mask=real, other=0.0)
    if BEST:
        best = tl.load(parts.best + number, mask=real, other=0)
    for split in range(1, splits):
        at = number + split * rows
        other = tl.load(parts.top + at, mask=real, other=float("-inf"))
        new = tl.maximum(top, other)
        if TOTAL:
            safe = tl.where(new == float("-inf"), 0.0, new)
            added = tl.load(parts.total + at, mask=real, other=0.0)
            total = total * tl.exp(top - safe) + added * tl.exp(other - safe)
        if BEST:
            best = tl.where(other > top, tl.load(parts.best + at, mask=real, other=0), best)
        top = new
    return top, total, best


@triton.jit
def with_reference(call, theta, head, real, top, total, PLACEMENT: tl.constexpr):
    """A threshold as the score that a key has to exceed."""
    if PLACEMENT == "max-relative":
        theta += tl.where(top == float("-inf"), 0.0, top)
    elif PLACEMENT == "post-softmax":
        highest = tl.where(top == float("-inf"), 0.0, top)
        if call.sinks is not None:
            total += tl.exp(tl.load(call.sinks + head, mask=real, other=0.0).to(tl.float32) - highest)
        theta += highest + tl.log(tl.where(total == 0, 1.0, total))  # 0: a row that sees nothing
    return theta


@triton.jit
def online(scores, top, total, best, at, TOTAL: tl.constexpr, BEST: tl.constexpr):
    """What is known of rows up to a block of scores, and with it."""
    if BEST:
        high, place = tl.max(scores, 1, return_indices=True)
        best = tl.where(high > top, at + place, best)
    else:
        high = tl.max(scores, 1)
    new = tl.maximum(top, high)
    if TOTAL:
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(scores - safe[:, None]), 1)
    return new, total, best
