# mypy: allow-untyped-defs, allow-untyped-calls
"""Exact selection: the k-th highest score of a row, by counting digits of integers that are ordered like the scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_scores import LENGTHS
from .triton_tiles import gathered, row_budget, row_ranges, row_theta, with_reference


class Chosen(NamedTuple):
    """Of each row: it keeps scores above `limit` (float32), and those equal to it up to the key `tie` (int32).
    rescued: uint8, whether min_keep saved it."""

    limit: Any
    tie: Any
    rescued: Any


@triton.jit
def _row_block(work, at, last, first, N: tl.constexpr):
    """Scores of the keys at .. at + N of a row, -inf beyond it."""
    columns = at + tl.arange(0, N)
    inside = (columns >= first) & (columns < last)
    return tl.load(work + columns, mask=inside, other=float("-inf"))


@triton.jit
def _ordered(scores):
    """int32 whose digits, read as unsigned, are ordered like the scores; a NaN counts as highest, -0 as 0."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, ~bits, bits | -2147483648)
    return tl.where(scores != scores, -1, bits)


@triton.jit
def _as_score(bits):
    """What _ordered was given; a NaN gives infinity, which only a NaN exceeds, and 0, of a row that sees fewer keys,
    what keeps them all."""
    bits_of = tl.where(bits < 0, bits & 2147483647, ~bits)
    score = bits_of.to(tl.float32, bitcast=True)
    score = tl.where(score != score, float("inf"), score)
    return tl.where(bits == 0, float("-inf"), score)


@triton.jit
def _kth_highest(work, first, last, wanted, N: tl.constexpr):
    """The wanted-th highest of a row, as _ordered gives it, and how many of its equals are wanted and there."""
    known = tl.full([], 0, tl.int32)  # the digits that are known, the highest first
    equals = wanted
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        histogram = tl.zeros([256], tl.int32)
        for at in range(first, last, N):
            scores = _row_block(work, at, last, first, N)
            bits = _ordered(scores)
            alike = scores != float("-inf")
            if step > 0:
                alike &= (bits >> (shift + 8)) == (known >> (shift + 8))
            histogram += tl.histogram((bits >> shift) & 255, 256, mask=alike)
        from_top = tl.cumsum(histogram, 0, reverse=True)
        digit = tl.maximum(tl.sum((from_top >= wanted).to(tl.int32), 0) - 1, 0)
        above = tl.arange(0, 256) > digit
        wanted -= tl.sum(tl.where(above, histogram, 0), 0)
        equals = tl.sum(tl.where(tl.arange(0, 256) == digit, histogram, 0), 0)
        known |= digit << shift
    return known, wanted, equals


@triton.jit
def _key_of_equal(work, first, last, bits, wanted, N: tl.constexpr):
    """The key of the wanted-th of a row's equals."""
    found, seen = last, 0
    for at in range(first, last, N):
        scores = _row_block(work, at, last, first, N)
        equal = ((_ordered(scores) == bits) & (scores != float("-inf"))).to(tl.int32)
        here = tl.sum(equal, 0)
        if (seen < wanted) & (seen + here >= wanted):
            found = at + tl.sum((tl.cumsum(equal, 0) < wanted - seen).to(tl.int32), 0)
        seen += here
    return found


@triton.jit
def _kept(work, first, last, limit, N: tl.constexpr):
    """How many scores of a row a threshold keeps."""
    count = 0
    for at in range(first, last, N):
        scores = _row_block(work, at, last, first, N)
        count += tl.sum(((scores != float("-inf")) & ~(scores <= limit)).to(tl.int32), 0)
    return count


@triton.jit(do_not_specialize=LENGTHS)
def select_rows(
    call,
    budget,
    parts,
    chosen,
    work,
    work_row,
    start,
    count,
    splits,
    rows,
    min_keep,
    PLACEMENT: tl.constexpr,
    N: tl.constexpr,
):
    """One program for each row; work: its scores, as score_rows left them. A row with a good threshold that keeps
    enough keeps it; PLACEMENT "none" is exact top-k."""
    number = tl.program_id(0).to(tl.int64)
    query, head = start + number % count, number // count % call.heads
    batch = number // count // call.heads
    first, last = row_ranges(call, batch, query, True)
    length, k = row_budget(call, budget, batch, head, query, first, last, True)
    limit, tie, rescued = float("-inf"), -1, False
    if k < length:
        wanted = k.to(tl.int32)
        if PLACEMENT != "none":
            theta = row_theta(budget, head, length, True)
            if theta == theta:
                top, total, _ = gathered(parts, number, True, rows, splits, PLACEMENT == "post-softmax", False)
                limit = with_reference(call, theta, head, True, top, total, PLACEMENT)
                rescued = _kept(work + number * work_row, first, last, limit, N) < min_keep
                wanted = tl.where(rescued, tl.minimum(min_keep, length.to(tl.int32)), 0)
        if wanted > 0:
            bits, left, equals = _kth_highest(work + number * work_row, first, last, wanted, N)
            limit, tie = _as_score(bits), last
            if left < equals:
                tie = _key_of_equal(work + number * work_row, first, last, bits, left, N)
    tl.store(chosen.limit + number, limit)
    tl.store(chosen.tie + number, tie)
    tl.store(chosen.rescued + number, tl.where(rescued, 1, 0).to(tl.uint8))
