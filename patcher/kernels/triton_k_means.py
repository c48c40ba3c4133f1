"""Clusters of queries by Triton: k-means in the metric of the keys' covariance, for all sequences of a batch at once.

The definition is methods/k_means.py, and score_space in methods/clustered.py. There points are queries times a factor L
of the covariance; here they stay queries less their mean, and the nearest centroid c is the one of the highest
q . w - c . w / 2 with w = L L' c, so that no other form of a query is written.
"""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.chunk import AttentionInputs
from ..methods.clustered import ClusteredPlain
from ..methods.k_means import random_direction, training_points
from .triton_sequences import PRECISION, Sequences, bounds, load_rows, shares, tile
from .triton_sizes import PROGRAMS, cdiv, padded

ROWS = 64  # tokens that are summed at a time
KEYS, COLUMNS = 32, 64  # a tile of centred keys, whose products are a tile of the covariance


def find_clusters(inputs: AttentionInputs, sequences: Sequences, method: ClusteredPlain) -> Tensor:
    """The cluster of every query, int32 [B, H, N]; 0 in sequences that stay dense, `method.clusters` for padding.

    N is more than method.clusters. Points as near to one centroid as to another, within rounding, may be in either's.
    """
    query, key = inputs.query, inputs.key
    batch, heads, tokens, width = query.shape
    query_mean, key_mean = _mean(query, sequences), _mean(key, sequences)
    metric = _metric(key, key_mean, sequences)
    direction = _direction(width, method.seed, query.device) * inputs.scale
    slope = torch.linalg.cholesky_ex(metric)[0] @ direction
    first, sample = _chosen(_projected(query, query_mean, slope, sequences), sequences.lengths, method.clusters)
    picked = query.gather(2, first.unsqueeze(-1).expand(-1, -1, -1, width))
    centroids = picked.float() - query_mean.unsqueeze(2)
    assigned = torch.empty(sample.shape, dtype=torch.int32, device=query.device)
    for _ in range(method.iterations):
        _assign(query, query_mean, centroids, metric, sequences, method, assigned, sample)
        _update(query, query_mean, sample, assigned, centroids)
    assigned = torch.empty(batch, heads, tokens, dtype=torch.int32, device=query.device)
    _assign(query, query_mean, centroids, metric, sequences, method, assigned, None)
    return assigned


def keep_direction(width: int, seed: int, device: torch.device) -> None:
    """Makes what calls with heads of this width keep on a device; the first call does it otherwise, which must then not
    be one that makes a CUDA graph: nothing may stay in that graph's memory."""
    _direction(width, seed, device)


@cache
def _direction(width: int, seed: int, device: torch.device) -> Tensor:
    """float32 [width] on the device. Kept, because what comes from the host is waited for."""
    return random_direction(width, torch.Generator().manual_seed(seed)).to(device)


def _mean(tensor: Tensor, sequences: Sequences) -> Tensor:
    """The mean row of every sequence and head of [B, H, N, D], float32 [B, H, D]."""
    batch, heads, tokens, width = tensor.shape
    parts, share = shares(tokens, ROWS, PROGRAMS // (batch * heads))
    sums = torch.empty(batch, heads, parts, width, dtype=torch.float32, device=tensor.device)
    _sum_rows[(batch * heads, parts)](
        tensor, *tensor.stride()[:3], *sequences.place, sums, heads, share, width, padded(width), ROWS
    )
    return sums.sum(2) / sequences.lengths.clamp(min=1)


@triton.jit(do_not_specialize=["share", "per_sequence"])
def _sum_rows(
    x, x_batch, x_head, x_row, first, last, per_sequence, sums, heads, share,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sum of a share of the rows of a head."""
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low, high = bounds(first, last, per_sequence, index // heads)
    columns = tl.arange(0, PADDED)
    base = x + index // heads * x_batch + index % heads * x_head
    total = tl.zeros([PADDED], tl.float32)
    for start in range(part * share, part * share + share, ROWS):
        rows = start + tl.arange(0, ROWS)
        seen = (rows >= low) & (rows < high)
        total += tl.sum(load_rows(base, x_row, rows, seen, columns, WIDTH).to(tl.float32), 0)
    tl.store(sums + (index * tl.num_programs(1) + part) * WIDTH + columns, total, mask=columns < WIDTH)


def _metric(key: Tensor, mean: Tensor, sequences: Sequences) -> Tensor:
    """The covariance of the keys of every sequence and KV head, float32 [B, G, D, D]."""
    batch, groups, tokens, width = key.shape
    tiles = cdiv(width, COLUMNS)
    parts, share = shares(tokens, KEYS, PROGRAMS // (batch * groups * tiles * tiles))
    sums = torch.empty(batch, groups, parts, width, width, dtype=torch.float32, device=key.device)
    _covariance[(batch * groups, parts, tiles * tiles)](
        key, *key.stride()[:3], mean, *sequences.place, sums, groups, share, width, tiles, COLUMNS, KEYS,
        num_stages=2,
    )  # fmt: skip
    metric = sums.sum(2) / sequences.lengths.clamp(min=1).unsqueeze(-1)
    diagonal = metric.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-6 * diagonal.sum(-1, keepdim=True) + 1e-12  # as in score_space
    return metric


@triton.jit(do_not_specialize=["share", "per_sequence"])
def _covariance(
    key, key_batch, key_head, key_row, mean, first, last, per_sequence, sums, groups, share,
    WIDTH: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A tile of the products of the centred keys, summed over a share of them."""
    index, part, tile = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    low, high = bounds(first, last, per_sequence, index // groups)
    left = tile // TILES * COLUMNS + tl.arange(0, COLUMNS)
    right = tile % TILES * COLUMNS + tl.arange(0, COLUMNS)
    left_mean = tl.load(mean + index * WIDTH + left, mask=left < WIDTH, other=0.0)
    right_mean = tl.load(mean + index * WIDTH + right, mask=right < WIDTH, other=0.0)
    base = key + index // groups * key_batch + index % groups * key_head
    total = tl.zeros([COLUMNS, COLUMNS], tl.float32)
    for start in range(part * share, part * share + share, ROWS):
        rows = start + tl.arange(0, ROWS)
        seen = (rows >= low) & (rows < high)
        x = load_rows(base, key_row, rows, seen, left, WIDTH).to(tl.float32)
        y = load_rows(base, key_row, rows, seen, right, WIDTH).to(tl.float32)
        x = tl.where(seen[:, None], x - left_mean[None, :], 0.0)
        y = tl.where(seen[:, None], y - right_mean[None, :], 0.0)
        total = tl.dot(tl.trans(x), y, total, input_precision=PRECISION)
    to = sums + (index * tl.num_programs(1) + part) * WIDTH * WIDTH + left[:, None] * WIDTH + right[None, :]
    tl.store(to, total, mask=(left < WIDTH)[:, None] & (right < WIDTH)[None, :])


def _projected(query: Tensor, mean: Tensor, slope: Tensor, sequences: Sequences) -> Tensor:
    """Every query along the direction of the first centroids, float32 [B, H, N]; inf for padding."""
    batch, heads, tokens, width = query.shape
    out = torch.empty(batch, heads, tokens, dtype=torch.float32, device=query.device)
    _project[(batch * heads, cdiv(tokens, ROWS))](
        query, *query.stride()[:3], mean, slope, *sequences.place, out, heads, heads // slope.shape[1], tokens,
        width, padded(width), ROWS,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "per_sequence"])
def _project(
    query, query_batch, query_head, query_row, mean, slope, first, last, per_sequence, out, heads, per_group, tokens,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    low, high = bounds(first, last, per_sequence, index // heads)
    columns, rows = tl.arange(0, PADDED), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    seen = (rows >= low) & (rows < high)
    base = query + index // heads * query_batch + index % heads * query_head
    centre = tl.load(mean + index * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    along = tl.load(slope + index // per_group * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    points = load_rows(base, query_row, rows, seen, columns, WIDTH).to(tl.float32) - centre[None, :]
    # Every row is summed in the same order, so that equal points have equal projections.
    found = tl.sum(points * along[None, :], 1)
    tl.store(out + index * tokens + rows, tl.where(seen, found, float("inf")), mask=rows < tokens)


def _chosen(projected: Tensor, lengths: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The tokens that are the first centroids, int64 [B, H, C], and those that updates look at, [B, H, M].

    As spread_out and the middles of methods/k_means.py, with a length of its own for each sequence, [B or 1, 1, 1]; -1
    for no token.
    """
    ordered, order = projected.sort(dim=-1, stable=True)
    lengths = lengths.clamp(min=1)
    distinct = torch.zeros_like(order)
    torch.cumsum(ordered[..., 1:] != ordered[..., :-1], -1, out=distinct[..., 1:])
    total = distinct.gather(-1, (lengths - 1).expand(*order.shape[:2], 1)) + 1
    steps = torch.arange(clusters, device=order.device)
    wanted = torch.where(total > clusters, (2 * steps + 1) * total // (2 * clusters), torch.minimum(steps, total - 1))
    first = order.gather(-1, torch.searchsorted(distinct, wanted))
    most = min(training_points(clusters), order.shape[-1])
    used = lengths.clamp(max=most)
    steps = torch.arange(most, device=order.device)
    places = ((2 * steps + 1) * lengths // (2 * used)).expand(*order.shape[:2], -1)
    return first, torch.where(steps < used, order.gather(-1, places), -1)


def _weights(centroids: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """w, float32 [B, H, C, D], the heads of a KV head in one product; and c . w / 2, [B, H, C]."""
    batch, heads, clusters, width = centroids.shape
    groups = metric.shape[1]
    weights = (centroids.view(batch, groups, heads // groups * clusters, width) @ metric).view_as(centroids)
    return weights, 0.5 * (centroids * weights).sum(-1)


def _assign(
    query: Tensor,
    mean: Tensor,
    centroids: Tensor,
    metric: Tensor,
    sequences: Sequences,
    method: ClusteredPlain,
    assigned: Tensor,
    sample: Tensor | None,
) -> None:
    """Fills `assigned` [B, H, m], of a sample of tokens or of all of them."""
    heads, points, width = query.shape[1], assigned.shape[2], query.shape[3]
    # Products of float32 tiles hold their left rows in registers: these neither spill nor fill shared memory.
    rows, some, warps = (64, 32, 4) if width <= 64 else (64, 16, 8) if width <= 128 else (16, 32, 4)
    _nearest[(query.shape[0] * heads, cdiv(points, rows))](
        query, *query.stride()[:3], mean, *_weights(centroids, metric), *sequences.place, sample, assigned, heads,
        points, method.clusters, sequences.short, sample is not None, width, padded(width), rows, some,
        num_warps=warps, num_stages=2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["points", "clusters", "short", "per_sequence"])
def _nearest(
    query, query_batch, query_head, query_row, mean, weights, halves, first, last, per_sequence, sample, assigned,
    heads, points, clusters, short, SAMPLED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, CENTROIDS: tl.constexpr,
):  # fmt: skip
    """The nearest centroid of each point, the first among equals; 0 in sequences up to `short`, `clusters` for none."""
    index = tl.program_id(0).to(tl.int64)
    low, high = bounds(first, last, per_sequence, index // heads)
    columns, rows = tl.arange(0, PADDED), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if SAMPLED:
        tokens = tl.load(sample + index * points + rows, mask=rows < points, other=-1)
    else:
        tokens = rows
    seen = (tokens >= low) & (tokens < high)
    base = query + index // heads * query_batch + index % heads * query_head
    centre = tl.load(mean + index * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    x = load_rows(base, query_row, tokens, seen, columns, WIDTH).to(tl.float32) - centre[None, :]
    best, found = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.int32)
    if high - low > short:
        for start in range(0, clusters, CENTROIDS):
            numbers = start + tl.arange(0, CENTROIDS)
            w = load_rows(weights + index * clusters * WIDTH, WIDTH, numbers, numbers < clusters, columns, WIDTH)
            half = tl.load(halves + index * clusters + numbers, mask=numbers < clusters, other=float("inf"))
            closeness = tl.dot(x, tl.trans(w), input_precision=PRECISION) - half[None, :]
            highest, place = tl.max(closeness, 1, return_indices=True)
            found = tl.where(highest > best, start + place, found)
            best = tl.maximum(highest, best)
    tl.store(assigned + index * points + rows, tl.where(seen, found, clusters), mask=rows < points)


def _update(query: Tensor, mean: Tensor, sample: Tensor, assigned: Tensor, centroids: Tensor) -> None:
    """Moves every centroid to the mean of its points; one without any stays where it is."""
    batch, heads, points = sample.shape
    clusters, width = centroids.shape[2:]
    rows = tile(4 * padded(width))
    some = min(32, rows)
    _means[(batch * heads, cdiv(clusters, some))](
        query, *query.stride()[:3], mean, sample, assigned, centroids, heads, points, clusters,
        width, padded(width), rows, some, num_warps=4 if width <= 64 else 8, num_stages=2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["points", "clusters"])
def _means(
    query, query_batch, query_head, query_row, mean, sample, assigned, centroids, heads, points, clusters,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, CENTROIDS: tl.constexpr,
):  # fmt: skip
    """Means of a tile of clusters. A matrix of who belongs where makes the sums a product, in an order of its own."""
    index = tl.program_id(0).to(tl.int64)
    columns, numbers = tl.arange(0, PADDED), tl.program_id(1) * CENTROIDS + tl.arange(0, CENTROIDS)
    base = query + index // heads * query_batch + index % heads * query_head
    centre = tl.load(mean + index * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    total, sizes = tl.zeros([CENTROIDS, PADDED], tl.float32), tl.zeros([CENTROIDS], tl.float32)
    for start in range(0, points, ROWS):
        rows = start + tl.arange(0, ROWS)
        tokens = tl.load(sample + index * points + rows, mask=rows < points, other=-1)
        of = tl.load(assigned + index * points + rows, mask=rows < points, other=clusters)
        x = load_rows(base, query_row, tokens, tokens >= 0, columns, WIDTH).to(tl.float32)
        x = tl.where((tokens >= 0)[:, None], x - centre[None, :], 0.0)
        members = (of[None, :] == numbers[:, None]).to(tl.float32)
        total = tl.dot(members, x, total, input_precision=PRECISION)
        sizes += tl.sum(members, 1)
    to = centroids + (index * clusters + numbers)[:, None] * WIDTH + columns[None, :]
    filled = ((sizes > 0) & (numbers < clusters))[:, None] & (columns < WIDTH)[None, :]
    tl.store(to, total / sizes[:, None], mask=filled)
