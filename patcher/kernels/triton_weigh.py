"""The values of kept keys, weighed. A block of keys that a tile of rows drops costs no exp, no product and no V."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_finish import finish, merged
from .triton_scores import LENGTHS
from .triton_tiles import (
    gathered,
    key_range,
    load_rows,
    online,
    program,
    row_budget,
    row_ranges,
    row_theta,
    score_block,
    tile_rows,
    with_reference,
)


class Sums(NamedTuple):
    """Of each split and row, [splits, rows]: the highest kept score, sum of exp(kept score - highest) and number of
    kept keys; [splits, rows, E]: the weighed values, and the sum of kept values where it is needed."""

    top: Any
    mass: Any
    kept: Any
    weighed: Any
    unweighed: Any


@triton.jit
def _limits(
    call, budget, parts, chosen, number, batch, head, query, first, last, real, rows, splits, PLACEMENT: tl.constexpr
):
    """Of each row: the score that a kept key exceeds, the first and last key that may equal it, and its highest score.

    Without `parts`, before any score is known, only what the scores themselves are compared with."""
    length, k = row_budget(call, budget, batch, head, query, first, last, real)
    top = tl.full(number.shape, float("-inf"), tl.float32)
    since, tie = tl.zeros(number.shape, tl.int32), tl.full(number.shape, -1, tl.int32)
    if chosen is not None:
        top, _, _ = gathered(parts, number, real, rows, splits, False, False)
        limit = tl.load(chosen.limit + number, mask=real, other=float("inf"))
        tie = tl.load(chosen.tie + number, mask=real, other=-1)
    else:
        theta = row_theta(budget, head, length, real)
        if parts is not None:
            top, total, best = gathered(parts, number, real, rows, splits, PLACEMENT == "post-softmax", True)
            theta = with_reference(call, theta, head, real, top, total, PLACEMENT)
            # A row that would keep nothing keeps its best key.
            since, tie = best, tl.where(theta >= top, best, -1)
        limit = tl.where(k < length, theta, float("-inf"))
    return limit, since, tie, top


@triton.jit
def _one_by_one(keep, weights, v_at, v_row, total, V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr, N: tl.constexpr):
    """total + weights @ V, where a value that is not finite changes the rows that keep it, and no other: in a product
    of matrices 0 * NaN would be NaN."""
    dims, offsets = tl.arange(0, V_BLOCK), tl.arange(0, N)
    for key in range(N):
        here = keep & (offsets == key)[None, :]
        kept = tl.max(here.to(tl.int32), 1) > 0
        weight = tl.sum(tl.where(here, weights.to(tl.float32), 0.0), 1)
        v = tl.load(v_at + key * v_row + dims, mask=(dims < V_WIDTH) & (tl.max(kept.to(tl.int32), 0) > 0), other=0.0)
        total += tl.where(kept[:, None], weight[:, None] * v.to(tl.float32)[None, :], 0.0)
    return total


@triton.jit(do_not_specialize=LENGTHS)
def weigh_rows(
    call,
    budget,
    parts,
    chosen,
    work,
    work_row,
    sums,
    mean,
    result,
    start,
    count,
    splits,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    V_WIDTH: tl.constexpr,
    V_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PLACEMENT: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    COMPENSATION: tl.constexpr,
    DROPPED: tl.constexpr,
    TOTAL: tl.constexpr,
    ONE_PASS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """work: the scores; computed where it is None. ONE_PASS: no kernel has seen them before. sums: None where one split
    has all keys, so that the rows can be finished here."""
    split, tile, pair = program(splits, count, GROUP, M)
    batch, group, query, head, number, real = tile_rows(call, start, count, tile, pair, GROUP, M)
    query += start
    first, last = row_ranges(call, batch, query, real)
    begin, end = key_range(first, last, split, splits, N)
    known = None if ONE_PASS else parts
    limit, since, tie, highest = _limits(
        call, budget, known, chosen, number, batch, head, query, first, last, real, rows, splits, PLACEMENT
    )
    if work is None:
        q = load_rows(call.query, batch, head, query.to(tl.int64), real, WIDTH, BLOCK)
    values = tl.zeros([M, V_BLOCK], tl.float32)
    unweighed = tl.zeros([M, V_BLOCK if DROPPED else 1], tl.float32)
    top, mass, kept = highest, tl.zeros([M], tl.float32), tl.zeros([M], tl.int32)
    best_score, total, best = top, mass, kept
    v_rows, broken, v_row = 0, 1, call.value.row
    dims, offsets = tl.arange(0, V_BLOCK), tl.arange(0, N)
    for careful in range(2):  # once more, with more care, where a value or a weight was not finite
        if broken > 0:
            values, mass = tl.zeros([M, V_BLOCK], tl.float32), tl.zeros([M], tl.float32)
            unweighed = tl.zeros([M, V_BLOCK if DROPPED else 1], tl.float32)
            top, kept = highest, tl.zeros([M], tl.int32)
            best_score, total, best = highest, tl.zeros([M], tl.float32), tl.zeros([M], tl.int32)
            v_rows = 0
            for at in range(begin, end, N):
                columns = at + offsets
                if work is None:
                    scores = score_block(call, q, batch, group, head, query, first, last, at, end, WIDTH, BLOCK, N)
                else:
                    visible = (columns[None, :] >= first[:, None]) & (columns[None, :] < last[:, None])
                    visible &= (columns < end)[None, :]
                    row = work + number[:, None] * work_row
                    scores = tl.load(row + columns[None, :], mask=visible, other=float("-inf"))
                if ONE_PASS:
                    best_score, total, best = online(scores, best_score, total, best, at, TOTAL, True)
                keep = ~(scores <= limit[:, None])  # keeps a NaN, which spoils its row as it would densely
                if not ONE_PASS:
                    equal = scores == limit[:, None] if chosen is not None else columns[None, :] >= since[:, None]
                    keep |= equal & (columns[None, :] <= tie[:, None])
                keep &= scores != float("-inf")
                wanted = tl.max(keep.to(tl.int32), 0)
                if tl.max(wanted, 0) > 0:
                    kept += tl.sum(keep.to(tl.int32), 1)
                    v_rows += tl.sum(wanted, 0)
                    scores = tl.where(keep, scores, float("-inf"))
                    if ONE_PASS:
                        new = tl.maximum(top, tl.max(scores, 1))
                        shrink = tl.exp(top - tl.where(new == float("-inf"), 0.0, new))
                        mass *= shrink
                        values *= shrink[:, None]
                        top = new
                    weights = tl.exp(scores - tl.where(top == float("-inf"), 0.0, top)[:, None])
                    mass += tl.sum(weights, 1)
                    v_at = call.value.at + batch * call.value.batch + group * call.value.head
                    v_at += tl.cast(at, tl.int64) * v_row
                    if careful > 0:
                        values = _one_by_one(keep, weights, v_at, v_row, values, V_WIDTH, V_BLOCK, N)
                        if DROPPED:
                            unweighed = _one_by_one(keep, keep, v_at, v_row, unweighed, V_WIDTH, V_BLOCK, N)
                    else:
                        inside = (wanted > 0)[:, None] & (dims < V_WIDTH)[None, :]
                        v = tl.load(v_at + offsets[:, None] * v_row + dims[None, :], mask=inside, other=0.0)
                        values = tl.dot(weights.to(v.dtype), v, values, input_precision="ieee")
                        if DROPPED:
                            unweighed = tl.dot(keep.to(v.dtype), v, unweighed, input_precision="ieee")
            finite = tl.abs(values) < float("inf")
            if DROPPED:
                finite &= tl.abs(unweighed) < float("inf")
            broken = tl.max(tl.max((~finite).to(tl.int32), 1), 0)
    if result.v_rows is not None:
        tl.store(result.v_rows + split * (tl.num_programs(0) // splits) + pair, v_rows)
    if sums is None:
        if not ONE_PASS:
            best_score, total, best = gathered(parts, number, real, rows, splits, TOTAL, chosen is None)
        place = batch, group, head, query, number, first, last, real
        seen, kept_sums = (best_score, total, best), (top, mass, kept, values, unweighed)
        finish(
            call, budget, chosen, mean, result, place, seen, kept_sums,
            V_WIDTH, V_BLOCK, PLACEMENT, DENOMINATOR, COMPENSATION, DROPPED, TOTAL,
        )  # fmt: skip
    else:
        place = split * rows + number
        if ONE_PASS:
            tl.store(parts.top + place, best_score, mask=real)
            if TOTAL:
                tl.store(parts.total + place, total, mask=real)
            tl.store(parts.best + place, best, mask=real)
        tl.store(sums.top + place, top, mask=real)
        tl.store(sums.mass + place, mass, mask=real)
        tl.store(sums.kept + place, kept, mask=real)
        at = place[:, None] * V_WIDTH + dims[None, :]
        inside = real[:, None] & (dims < V_WIDTH)[None, :]
        tl.store(sums.weighed + at, values, mask=inside)
        if DROPPED:
            tl.store(sums.unweighed + at, unweighed, mask=inside)


@triton.jit(do_not_specialize=LENGTHS)
def combine_rows(
    call,
    budget,
    parts,
    chosen,
    sums,
    mean,
    result,
    start,
    count,
    splits,
    rows,
    V_WIDTH: tl.constexpr,
    V_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PLACEMENT: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    COMPENSATION: tl.constexpr,
    DROPPED: tl.constexpr,
    TOTAL: tl.constexpr,
    M: tl.constexpr,
):
    """Makes the rows of a chunk of what each split has of them."""
    _, tile, pair = program(1, count, GROUP, M)
    batch, group, query, head, number, real = tile_rows(call, start, count, tile, pair, GROUP, M)
    query += start
    first, last = row_ranges(call, batch, query, real)
    place = batch, group, head, query, number, first, last, real
    seen = gathered(parts, number, real, rows, splits, TOTAL, chosen is None)
    kept_sums = merged(sums, number, real, rows, splits, V_WIDTH, V_BLOCK, DROPPED)
    finish(
        call, budget, chosen, mean, result, place, seen, kept_sums,
        V_WIDTH, V_BLOCK, PLACEMENT, DENOMINATOR, COMPENSATION, DROPPED, TOTAL,
    )  # fmt: skip
