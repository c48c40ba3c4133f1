"""The scores of every row of a chunk: what is known of them, and where exact selection needs them the scores."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import key_range, load_rows, online, program, row_ranges, score_block, tile_rows

LENGTHS = ["start", "count", "splits"]


@triton.jit(do_not_specialize=LENGTHS)
def score_rows(
    call,
    parts,
    work,
    work_row,
    start,
    count,
    splits,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    TOTAL: tl.constexpr,
    BEST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """parts: as Parts, `best` where it is wanted. work: float32 [rows, work_row], or None."""
    split, tile, pair = program(splits, count, GROUP, M)
    batch, group, query, head, number, real = tile_rows(call, start, count, tile, pair, GROUP, M)
    query += start
    first, last = row_ranges(call, batch, query, real)
    begin, end = key_range(first, last, split, splits, N)
    q = load_rows(call.query, batch, head, query.to(tl.int64), real, WIDTH, BLOCK)
    top = tl.full([M], float("-inf"), tl.float32)
    total, best = tl.zeros([M], tl.float32), tl.zeros([M], tl.int32)
    for at in range(begin, end, N):
        scores = score_block(call, q, batch, group, head, query, first, last, at, end, WIDTH, BLOCK, N)
        top, total, best = online(scores, top, total, best, at, TOTAL, BEST)
        if work is not None:
            columns = at + tl.arange(0, N)
            to = work + number[:, None] * work_row + columns[None, :]
            tl.store(to, scores, mask=real[:, None] & (columns < end)[None, :])
    place = split * rows + number
    tl.store(parts.top + place, top, mask=real)
    if TOTAL:
        tl.store(parts.total + place, total, mask=real)
    if BEST:
        tl.store(parts.best + place, best, mask=real)
