"""The end of a row: what its splits have of it put together, the mass of dropped keys, sinks, the mean of values."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_tiles import by_length, load_rows, row_budget, row_theta, with_reference


class Result(NamedTuple):
    """Where the output goes (a Place), and counts where they are wanted: kept int64, fallback and rescued uint8, of
    each row of the call [B, H, queries]; v_rows int32 [splits, B x G]."""

    out: Any
    kept: Any
    fallback: Any
    rescued: Any
    v_rows: Any
    queries: Any


class Mean(NamedTuple):
    """Sums of value rows: of all that a single query sees, `whole` [B, G, E]; or up to each key, `prefix` float32
    [B, G, n, E], where rows that are not finite count as zeros, and their number, `broken` int32 [B, G, n]; or of what
    each row sees, `rows`, of which `sharing` query heads share one."""

    whole: Any
    prefix: Any
    broken: Any
    rows: Any
    sharing: Any
    groups: Any
    keys: Any


@triton.jit
def merged(sums, number, real, rows, splits, V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr, DROPPED: tl.constexpr):
    """Sums of whole rows from those of their splits."""
    dims = tl.arange(0, V_BLOCK)
    inside = real[:, None] & (dims < V_WIDTH)[None, :]
    top = tl.full(number.shape, float("-inf"), tl.float32)
    mass, kept = tl.zeros(number.shape, tl.float32), tl.zeros(number.shape, tl.int32)
    values = tl.zeros(inside.shape, tl.float32)
    unweighed = values
    for split in range(splits):
        place = number + split * rows
        at = place[:, None] * V_WIDTH + dims[None, :]
        other = tl.load(sums.top + place, mask=real, other=float("-inf"))
        new = tl.maximum(top, other)
        safe = tl.where(new == float("-inf"), 0.0, new)
        before, here = tl.exp(top - safe), tl.exp(other - safe)
        mass = mass * before + tl.load(sums.mass + place, mask=real, other=0.0) * here
        kept += tl.load(sums.kept + place, mask=real, other=0)
        added = tl.load(sums.weighed + at, mask=inside, other=0.0)
        values = values * before[:, None] + added * here[:, None]
        if DROPPED:
            unweighed += tl.load(sums.unweighed + at, mask=inside, other=0.0)
        top = new
    return top, mass, kept, values, unweighed


@triton.jit
def _up_to(mean, pair, key, real, V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr):
    """Sum of the value rows before a key, and how many of them are not finite."""
    dims = tl.arange(0, V_BLOCK)
    at, mask = pair * mean.keys + key - 1, real & (key > 0)
    inside = mask[:, None] & (dims < V_WIDTH)[None, :]
    sums = tl.load(mean.prefix + at[:, None] * V_WIDTH + dims[None, :], mask=inside, other=0.0)
    return sums, tl.load(mean.broken + at, mask=mask, other=0)


@triton.jit
def _visible_sum(mean, batch, group, head, query, first, last, real, V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr):
    """Sum [M, V_BLOCK] of the value rows that each row sees; NaN where one of them is not finite."""
    pair = batch * mean.groups + group
    dims = tl.arange(0, V_BLOCK)
    if mean.whole is not None:
        whole = tl.load(mean.whole + pair * V_WIDTH + dims, mask=dims < V_WIDTH, other=0.0).to(tl.float32)
        sums = tl.where(real[:, None], whole[None, :], 0.0)
    elif mean.rows is not None:
        sums = load_rows(mean.rows, batch, head // mean.sharing, query.to(tl.int64), real, V_WIDTH, V_BLOCK)
    else:
        after, broken = _up_to(mean, pair, last, real & (last > first), V_WIDTH, V_BLOCK)
        before, broken_before = _up_to(mean, pair, first, real & (last > first), V_WIDTH, V_BLOCK)
        sums = tl.where((broken > broken_before)[:, None], float("nan"), after - before)
    return sums


@triton.jit
def finish(
    call,
    budget,
    chosen,
    mean,
    result,
    place,
    seen,
    kept_sums,
    V_WIDTH: tl.constexpr,
    V_BLOCK: tl.constexpr,
    PLACEMENT: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    COMPENSATION: tl.constexpr,
    DROPPED: tl.constexpr,
    TOTAL: tl.constexpr,
):
    """Writes the output and the counts of a tile of rows.

    place: sequence, KV head, and of each row head, query, number, first and last key, and whether it is one. seen: as
    in Parts. kept_sums: as in Sums.
    """
    batch, group, head, query, number, first, last, real = place
    highest, total, best = seen
    top, mass, kept, values, unweighed = kept_sums
    length, k = row_budget(call, budget, batch, head, query, first, last, real)
    sparse, fallback, rescued = k < length, k < 0, k < 0
    if PLACEMENT != "none":
        theta = row_theta(budget, head, length, real)
        fallback = sparse & (theta != theta)
        limit = with_reference(call, theta, head, real, highest, total, PLACEMENT)
    if chosen is None:
        rescued = sparse & (limit >= highest)
        alone = sparse & (kept == 0) & (highest > float("-inf"))  # nothing exceeds the limit: the best key stays
        v = load_rows(call.value, batch, group, best.to(tl.int64), alone, V_WIDTH, V_BLOCK).to(tl.float32)
        values = tl.where(alone[:, None], v, values)
        if DROPPED:
            unweighed = tl.where(alone[:, None], v, unweighed)
        top, mass, kept = tl.where(alone, highest, top), tl.where(alone, 1.0, mass), tl.where(alone, 1, kept)
    elif PLACEMENT != "none":
        rescued = tl.load(chosen.rescued + number, mask=real, other=0) != 0
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    unit = tl.exp(top - highest)
    mass *= unit
    values *= unit[:, None]
    denominator = mass
    if call.sinks is not None:
        denominator += tl.exp(tl.load(call.sinks + head, mask=real, other=0.0).to(tl.float32) - highest)
    if COMPENSATION != "none":
        dropped = length - kept
        missing = tl.zeros_like(mass)
        if TOTAL:
            missing = tl.maximum(total - mass, 0.0)
        if DENOMINATOR == "exp-threshold":
            estimate = dropped.to(tl.float32) * tl.exp(tl.minimum(limit - highest, 0.0))
            missing = tl.where(theta == theta, estimate, missing)
        elif DENOMINATOR == "offline":
            estimate = by_length(budget.table, budget.table.dropped, head, length, real)
            missing = tl.where(estimate == estimate, estimate, missing)
        missing = tl.where(dropped > 0, missing, 0.0)
        denominator += missing
        if COMPENSATION == "sdc+vmc":
            sums, among = _visible_sum(mean, batch, group, head, query, first, last, real, V_WIDTH, V_BLOCK), length
            if DROPPED:
                sums, among = sums - unweighed, dropped
            share = missing / tl.maximum(among, 1).to(tl.float32)
            values += tl.where((missing > 0)[:, None], share[:, None] * sums, 0.0)
    # A NaN is kept, so that a row which keeps nothing sees nothing.
    out = tl.where((kept > 0)[:, None], values / tl.where(kept > 0, denominator, 1.0)[:, None], 0.0)
    dims = tl.arange(0, V_BLOCK)
    to = result.out
    at = (batch * to.batch + head * to.head + query.to(tl.int64) * to.row)[:, None] + dims[None, :]
    tl.store(to.at + at, out.to(to.at.dtype.element_ty), mask=real[:, None] & (dims < V_WIDTH)[None, :])
    if result.kept is not None:
        at = (batch * call.heads + head) * result.queries + query
        tl.store(result.kept + at, kept.to(tl.int64), mask=real)
        tl.store(result.fallback + at, fallback.to(tl.uint8), mask=real)
        tl.store(result.rescued + at, rescued.to(tl.uint8), mask=real)
