"""The output of clustered attention by Triton: each query's own weights for its cluster's strongest keys.

The definition is _refine of methods/cluster_rows.py. Queries come in the order of their clusters, so that most tiles of
them have one cluster's keys to read; in a sequence that stays dense the keys are all of them.
"""

# What a kernel is given has no type in Python.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..methods.chunk import AttentionInputs
from .triton_centroids import Attended
from .triton_sequences import PRECISION, Sequences, bounds, capped, finite, load_rows, tile
from .triton_sizes import cdiv, padded

KEYS = 32  # at a time, at most: what is refined by default


def refine(
    inputs: AttentionInputs,
    sequences: Sequences,
    clusters: int,
    out: Tensor,
    order: Tensor | None = None,
    in_order: Tensor | None = None,
    attended: Attended | None = None,
) -> None:
    """Fills out [B, H, N, E]; zeros for padding. Without `attended` every sequence is dense.

    order, in_order: as in attend_centroids.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    batch, heads, tokens, width = query.shape
    value_width = value.shape[3]
    strongest = mass = rest = None
    if attended is not None:
        strongest, mass, rest = attended.strongest, attended.mass, attended.rest
    # What fits in shared memory and in registers. Of rows of more than 128 float32 even the smallest tiles do not: a
    # thread has up to 192 bytes in slower memory, and with fewer or more warps more.
    widest, exact = max(padded(width), padded(value_width)), query.dtype == torch.float32
    rows, keys = tile((8 if exact else 2) * widest), tile(query.element_size() * widest, most=KEYS)
    warps = 4 if widest <= (128 if exact else 64) else 8
    _refine[(batch * heads, cdiv(tokens, rows))](
        query, *query.stride()[:3], key, *key.stride()[:3], value, *value.stride()[:3], out, *out.stride()[:3],
        *sequences.place, order, in_order, strongest, mass, rest, heads, heads // key.shape[1], tokens, clusters,
        0 if strongest is None else strongest.shape[3], sequences.short, inputs.scale,
        inputs.softcap or 1.0, inputs.softcap is not None, attended is not None,
        width, padded(width), value_width, padded(value_width), rows, keys,
        num_warps=warps, num_stages=2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "clusters", "refined", "short", "per_sequence"])
def _refine(
    query, query_batch, query_head, query_row, key, key_batch, key_head, key_row, value, value_batch, value_head,
    value_row, out, out_batch, out_head, out_row, first, last, per_sequence, order, in_order, strongest, mass, rest,
    heads, per_group, tokens, clusters, refined, short, scale, softcap, CAPPED: tl.constexpr, CLUSTERED: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_PADDED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    sequence, head, kv_head = index // heads, index % heads, index % heads // per_group
    low, high = bounds(first, last, per_sequence, sequence)
    columns, value_columns = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if CLUSTERED:
        places = tl.load(order + index * tokens + rows, mask=rows < tokens, other=0)
        of = tl.load(in_order + index * tokens + rows, mask=rows < tokens, other=clusters)
    else:
        places = rows
        of = tl.where((rows >= low) & (rows < high), 0, clusters)
    q = load_rows(query + sequence * query_batch + head * query_head, query_row, places, of < clusters, columns, WIDTH)
    keys, values = (
        key + sequence * key_batch + kv_head * key_head,
        value + sequence * value_batch + kv_head * value_head,
    )
    written = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
    dense = high - low <= short
    count = tl.where(dense, high - low, refined)
    for cluster in range(tl.min(of), tl.minimum(tl.max(tl.where(of < clusters, of, -1)) + 1, clusters)):
        at = index * clusters + cluster
        top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
        for start in range(0, count, KEYS):
            some = start + tl.arange(0, KEYS)
            tokens_of = low + some
            if CLUSTERED and strongest is not None:  # noqa: SIM102  # this one when compiling
                if not dense:
                    tokens_of = tl.load(strongest + at * refined + some, mask=some < refined, other=-1).to(tl.int32)
            seen = (some < count) & (tokens_of >= low) & (tokens_of < high)
            k = load_rows(keys, key_row, tokens_of, seen, columns, WIDTH)
            scores = capped(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, softcap, CAPPED)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            highest = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - finite(highest)[:, None])
            factor = tl.exp(top - finite(highest))
            v = load_rows(values, value_row, tokens_of, seen, value_columns, VALUE_WIDTH)
            sums = sums * factor[:, None]
            sums = tl.dot(weights.to(v.dtype), v, sums, input_precision=PRECISION)
            total = total * factor + tl.sum(weights, 1)
            top = highest
        given = sums / total[:, None]
        if CLUSTERED:  # noqa: SIM102  # this one when compiling
            if not dense:
                given = tl.zeros_like(sums)
                given += tl.load(rest + at * VALUE_WIDTH + value_columns, mask=value_columns < VALUE_WIDTH, other=0.0)
                if strongest is not None:
                    given += sums * (tl.load(mass + at) / total)[:, None]
        written = tl.where((of == cluster)[:, None], given, written)
    to = out + sequence * out_batch + head * out_head + places.to(tl.int64)[:, None] * out_row + value_columns[None, :]
    tl.store(
        to, written.to(out.dtype.element_ty), mask=(rows < tokens)[:, None] & (value_columns < VALUE_WIDTH)[None, :]
    )
