"""Attention of clusters by Triton: the mean query of each attends to all keys, and what the strongest weigh is found.

The definition is methods/cluster_rows.py. Scores are written once, float32 [B, H, C, n], for torch to choose the
strongest from; without refined keys not even they are.
"""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.chunk import AttentionInputs
from .triton_sequences import Sequences, bounds, capped, finite, load_rows, shares, split_dot, tile
from .triton_sizes import PROGRAMS, cdiv, padded

MEMBERS = 64  # queries that are summed at a time
SOME = 16  # strongest keys that are read at a time


@dataclass(frozen=True)
class Attended:
    """What clusters give to their queries.

    strongest: int64 [B, H, C, k], the refined keys. mass: float32 [B, H, C], their weight. rest: float32 [B, H, C, E],
    the output without them. None, None and the whole output where no key is refined.
    """

    strongest: Tensor | None
    mass: Tensor | None
    rest: Tensor


def attend_centroids(
    inputs: AttentionInputs, sequences: Sequences, clusters: int, refined: int, order: Tensor, in_order: Tensor
) -> Attended:
    """order, in_order: the queries in the order of their clusters, and those, both [B, H, N]. Clusters of sequences
    that stay dense are of no meaning."""
    key, value = inputs.key, inputs.value
    batch, heads, tokens, width = inputs.query.shape
    groups, value_width = key.shape[1], value.shape[3]
    centroids = _centroids(inputs.query, order, in_order, clusters)
    widest = max(padded(width), padded(value_width))
    some, keys = tile(4 * widest, most=32), tile(key.element_size() * widest)
    tiles = cdiv(clusters, some)
    parts, share = shares(tokens, keys, PROGRAMS // (batch * heads * tiles))
    scores = centroids.new_empty(batch, heads, clusters, parts * share) if refined else None
    tops, totals = (centroids.new_empty(batch, heads, parts, clusters) for _ in range(2))
    sums = centroids.new_empty(batch, heads, parts, clusters, value_width)
    _attend[(batch * heads, tiles, parts)](
        centroids, key, *key.stride()[:3], value, *value.stride()[:3], *sequences.place, scores, tops, totals, sums,
        heads, heads // groups, clusters, share, inputs.scale, inputs.softcap or 1.0, inputs.softcap is not None,
        width, padded(width), value_width, padded(value_width), some, keys,
        num_warps=4 if widest <= 128 else 8, num_stages=2,
    )  # fmt: skip
    highest = strongest = mass = None
    if scores is not None:
        highest, strongest = scores.topk(refined, dim=-1, sorted=False)
        mass = centroids.new_empty(batch, heads, clusters)
    rest = centroids.new_empty(batch, heads, clusters, value_width)
    _settle[(batch * heads * clusters,)](
        value, *value.stride()[:3], *sequences.place, tops, totals, sums, highest, strongest, mass, rest,
        heads, heads // groups, clusters, parts, refined, value_width, padded(value_width), SOME, num_warps=1,
    )  # fmt: skip
    return Attended(strongest, mass, rest)


def _centroids(query: Tensor, order: Tensor, in_order: Tensor, clusters: int) -> Tensor:
    """The mean query of every cluster, float32 [B, H, C, D]."""
    batch, heads, tokens, width = query.shape
    numbers = torch.arange(clusters + 1, dtype=in_order.dtype, device=query.device).expand(batch, heads, -1)
    starts = torch.searchsorted(in_order, numbers.contiguous(), out_int32=True)
    means = torch.empty(batch, heads, clusters, width, dtype=torch.float32, device=query.device)
    _mean_queries[(batch * heads * clusters,)](
        query, *query.stride()[:3], order, starts, means, heads, tokens, clusters, width, padded(width), MEMBERS
    )
    return means


@triton.jit(do_not_specialize=["tokens", "clusters"])
def _mean_queries(
    query, query_batch, query_head, query_row, order, starts, centroids, heads, tokens, clusters,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The mean of a cluster's queries; zeros for a cluster that has none."""
    at = tl.program_id(0).to(tl.int64)
    index, cluster = at // clusters, at % clusters
    columns = tl.arange(0, PADDED)
    base = query + index // heads * query_batch + index % heads * query_head
    start = tl.load(starts + index * (clusters + 1) + cluster)
    end = tl.load(starts + index * (clusters + 1) + cluster + 1)
    total = tl.zeros([PADDED], tl.float32)
    for some in range(start, end, ROWS):
        rows = some + tl.arange(0, ROWS)
        members = tl.load(order + index * tokens + rows, mask=rows < end, other=0)
        total += tl.sum(load_rows(base, query_row, members, rows < end, columns, WIDTH).to(tl.float32), 0)
    size = tl.maximum(end - start, 1).to(tl.float32)
    tl.store(centroids + at * WIDTH + columns, total / size, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["clusters", "share", "per_sequence"])
def _attend(
    centroids, key, key_batch, key_head, key_row, value, value_batch, value_head, value_row, first, last, per_sequence,
    scores, tops, totals, sums, heads, per_group, clusters, share, scale, softcap, CAPPED: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_PADDED: tl.constexpr,
    CENTROIDS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of centroids and a share of the keys: their scores, and the sums of a softmax over them."""
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    numbers = tl.program_id(1) * CENTROIDS + tl.arange(0, CENTROIDS)
    columns, value_columns = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
    low, high = bounds(first, last, per_sequence, index // heads)
    keys = key + index // heads * key_batch + index % heads // per_group * key_head
    values = value + index // heads * value_batch + index % heads // per_group * value_head
    c = load_rows(centroids + index * clusters * WIDTH, WIDTH, numbers, numbers < clusters, columns, WIDTH)
    places = (index * clusters + numbers)[:, None] * (share * tl.num_programs(2))
    top, total = tl.full([CENTROIDS], float("-inf"), tl.float32), tl.zeros([CENTROIDS], tl.float32)
    out = tl.zeros([CENTROIDS, VALUE_PADDED], tl.float32)
    for start in range(part * share, part * share + share, KEYS):
        rows = start + tl.arange(0, KEYS)
        seen = (rows >= low) & (rows < high)
        k = load_rows(keys, key_row, rows, seen, columns, WIDTH)
        found = capped(split_dot(c, tl.trans(k)) * scale, softcap, CAPPED)
        found = tl.where(seen[None, :], found, float("-inf"))
        if scores is not None:
            tl.store(scores + places + rows[None, :], found, mask=(numbers < clusters)[:, None])
        highest = tl.maximum(top, tl.max(found, 1))
        weights = tl.exp(found - finite(highest)[:, None])
        factor = tl.exp(top - finite(highest))
        v = load_rows(values, value_row, rows, seen, value_columns, VALUE_WIDTH)
        out = out * factor[:, None] + split_dot(weights, v)
        total = total * factor + tl.sum(weights, 1)
        top = highest
    at = (index * tl.num_programs(2) + part) * clusters + numbers
    tl.store(tops + at, top, mask=numbers < clusters)
    tl.store(totals + at, total, mask=numbers < clusters)
    to = sums + at[:, None] * VALUE_WIDTH + value_columns[None, :]
    tl.store(to, out, mask=(numbers < clusters)[:, None] & (value_columns < VALUE_WIDTH)[None, :])


@triton.jit(do_not_specialize=["clusters", "parts", "refined", "per_sequence"])
def _settle(
    value, value_batch, value_head, value_row, first, last, per_sequence, tops, totals, sums, highest, strongest, mass,
    rest, heads, per_group, clusters, parts, refined, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One cluster: puts the shares of keys together, and takes out what the strongest keys gave."""
    at = tl.program_id(0).to(tl.int64)
    index, cluster = at // clusters, at % clusters
    columns = tl.arange(0, PADDED)
    top, total, out = float("-inf"), 0.0, tl.zeros([PADDED], tl.float32)
    for part in range(parts):
        place = (index * parts + part) * clusters + cluster
        own = tl.load(tops + place)
        both = tl.maximum(top, own)
        factor, own_factor = tl.exp(top - finite(both)), tl.exp(own - finite(both))
        total = total * factor + tl.load(totals + place) * own_factor
        own_out = tl.load(sums + place * WIDTH + columns, mask=columns < WIDTH, other=0.0)
        out = out * factor + own_out * own_factor
        top = both
    if strongest is not None:
        low, high = bounds(first, last, per_sequence, index // heads)
        values = value + index // heads * value_batch + index % heads // per_group * value_head
        taken = 0.0
        for start in range(0, refined, ROWS):
            some = start + tl.arange(0, ROWS)
            rows = tl.load(strongest + at * refined + some, mask=some < refined, other=-1)
            seen = (rows >= low) & (rows < high)
            scores = tl.load(highest + at * refined + some, mask=some < refined, other=float("-inf"))
            weights = tl.exp(scores - finite(top))
            v = load_rows(values, value_row, rows, seen, columns, WIDTH).to(tl.float32)
            out -= tl.sum(weights[:, None] * v, 0)
            taken += tl.sum(weights)
        tl.store(mass + at, taken / total)
    tl.store(rest + at * WIDTH + columns, out / total, mask=columns < WIDTH)
