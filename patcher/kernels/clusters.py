"""Clustered attention by the native library: what `Clustered.attend` does in torch, faster.

A call is handed over as addresses, sizes and strides, in the order in which csrc/module.cpp reads them. Everything is
checked here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs, Observer
from ..methods.clustered import ClusterCounts, ClusteredPlain, sequence_at, shared_keys
from ..methods.k_means import random_direction, training_points
from .arguments import MOST_KEYS, as_rows, attention_refusal, strided
from .library import native

NAME = "native"  # of this way through a call, for `paths`
LARGE = 2**25  # bytes; so much at once is memory that is new from the system


def refusal(inputs: AttentionInputs, method: ClusteredPlain, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if the native library takes it."""
    shared = attention_refusal(inputs, observer)
    if shared is not None:
        return shared
    tokens = inputs.key.shape[2]
    if inputs.query.shape[2] != tokens:
        return "queries of other tokens than the keys"
    if tokens < method.min_length:
        return f"fewer than {method.min_length} tokens, which stay dense"
    if inputs.bias is not None:
        return "a position bias"
    if inputs.sinks is not None:
        return "attention sinks"
    return None


def attend(
    inputs: AttentionInputs,
    method: ClusteredPlain,
    thresholds: object = None,
    *,
    count: bool = False,
    threads: int | None = None,
) -> tuple[Tensor, ClusterCounts | None]:
    """As method.attend, for a call that `refusal` has nothing against.

    Points that are as near to one centroid as to another, within rounding, may be in either's cluster; of keys that
    score the same within rounding either may be refined. Raises NotPatchableError as method.attend does, and ValueError
    for a call that the library does not take.
    """
    reason = refusal(inputs, method)
    if reason is not None:
        raise ValueError(f"not a call for the native library: {reason}")
    work = prepared(inputs, method, threads)
    find_clusters(work)
    attend_clusters(work)
    # In torch: what is short costs little.
    for index, positions in work.dense:
        work.out[index].index_copy_(1, positions, method.attend(sequence_at(inputs, index, positions))[0][0])
    if not count:
        return work.out, None
    counts = [method.counts_of(inputs.query.shape[1], length) for length in work.lengths if length]
    return work.out, ClusterCounts(*(sum(part) for part in zip((0, 0, 0), *counts, strict=True)))


@dataclass(frozen=True)
class Work:
    """A call as the library works on it.

    out: [B, H, N, E], zeros for padding. lengths: tokens of each sequence without padding. dense: sequences that stay
    dense, and their tokens. positions: of the tokens of all other sequences, one sequence after another, from starts[b]
    to starts[b + 1]. direction: [D], along which the first centroids spread. assigned: the cluster of each of those
    tokens, for each sequence [H, its length] in a row.
    """

    inputs: AttentionInputs
    method: ClusteredPlain
    threads: int
    out: Tensor
    lengths: list[int]
    dense: list[tuple[int, Tensor]]
    positions: Tensor
    starts: Tensor
    direction: Tensor
    assigned: Tensor


def prepared(inputs: AttentionInputs, method: ClusteredPlain, threads: int | None = None) -> Work:
    """Raises ValueError for no threads, and NotPatchableError where queries of a sequence see different keys."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    query, key, value = (as_rows(tensor.detach()) for tensor in (inputs.query, inputs.key, inputs.value))
    batch, heads, tokens = query.shape[:3]
    valid = shared_keys(inputs.visibility, tokens, key.shape[2]).expand(batch, -1)
    lengths = valid.sum(-1).tolist()
    dense = [(b, valid[b].nonzero().squeeze(-1)) for b in range(batch) if 0 < lengths[b] < method.min_length]
    if dense:
        valid = valid & (torch.tensor(lengths) >= method.min_length).unsqueeze(1)
    starts = torch.zeros(batch + 1, dtype=torch.int64)
    starts[1:] = valid.sum(-1).cumsum(0)
    make = torch.empty if min(lengths, default=0) == tokens else torch.zeros
    out = make(batch, tokens, heads, value.shape[3], dtype=value.dtype).transpose(1, 2)
    library = native()
    if library is not None and out.nbytes >= LARGE:
        library.large_pages(out.data_ptr(), out.nbytes)
    return Work(
        inputs=replace(inputs, query=query, key=key, value=value),
        method=method,
        threads=torch.get_num_threads() if threads is None else threads,
        out=out,
        lengths=lengths,
        dense=dense,
        positions=valid.nonzero()[:, 1].to(torch.int32),
        starts=starts,
        direction=random_direction(query.shape[3], torch.Generator().manual_seed(method.seed)),
        assigned=torch.empty(heads * int(starts[-1]), dtype=torch.int32),
    )


def find_clusters(work: Work) -> None:
    """Fills `assigned` by k-means; in torch where that is over codes, which are not what takes the time."""
    if work.method.clustering == "rows":
        _call("k_means", work)
        return
    heads = work.inputs.query.shape[1]
    for index, (start, end) in enumerate(pairwise(work.starts.tolist())):
        if end > start:
            part = sequence_at(work.inputs, index, work.positions[start:end].long())
            work.assigned[heads * start : heads * end] = work.method.group(part).flatten()


def attend_clusters(work: Work) -> None:
    """Fills `out`, given `assigned`. Raises ValueError for clusters that there are not."""
    heads, ends = work.inputs.query.shape[1], work.starts.tolist()
    for start, end in pairwise(ends):
        if end == start:
            continue
        lowest, highest = (int(bound) for bound in work.assigned[heads * start : heads * end].aminmax())
        if lowest < 0 or highest >= min(work.method.clusters, end - start):
            raise ValueError(f"clusters {lowest}..{highest} of {min(work.method.clusters, end - start)}")
    _call("clusters", work)


def _call(name: str, work: Work) -> None:
    library = native()
    if library is None:
        raise RuntimeError("no native library")
    inputs, method = work.inputs, work.method
    query, key, value = inputs.query, inputs.key, inputs.value
    getattr(library, name)(
        query.shape[0],
        query.shape[1],
        key.shape[1],
        query.shape[3],
        value.shape[3],
        query.dtype == torch.bfloat16,
        strided(query),
        strided(key),
        strided(value),
        strided(work.out),
        inputs.scale,
        inputs.softcap or 0.0,
        work.positions.data_ptr(),
        work.starts.data_ptr(),
        min(method.clusters, MOST_KEYS),
        min(method.refined, MOST_KEYS),
        method.iterations,
        training_points(min(method.clusters, MOST_KEYS)),
        work.direction.data_ptr(),
        work.assigned.data_ptr(),
        work.threads,
    )
