"""Clustered attention by Triton: what `Clustered.attend` does in torch, for all sequences of a batch at once.

Nothing waits for the GPU: what depends on the lengths of sequences is decided there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..methods.chunk import AttentionInputs, Observer
from ..methods.clustered import ClusterCounts, ClusteredPlain
from ..methods.visibility import RowRanges
from .arguments import as_rows
from .triton_arguments import attention_refusal
from .triton_centroids import attend_centroids
from .triton_k_means import find_clusters, keep_direction
from .triton_library import obstacle, runs_on
from .triton_refine import refine
from .triton_sequences import Sequences

NAME = "triton"  # of this way through a call, for `paths`


def refusal(inputs: AttentionInputs, method: ClusteredPlain, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if Triton takes it."""
    shared = attention_refusal(inputs, observer)
    if shared is not None:
        return shared
    if inputs.query.shape[2] != inputs.key.shape[2]:
        return "queries of other tokens than the keys"
    if not isinstance(inputs.visibility, RowRanges):
        return "a mask of its own for each query"
    if method.clustering != "rows":
        return "clusters of hash codes"
    if inputs.bias is not None:
        return "a position bias"
    if inputs.sinks is not None:
        return "attention sinks"
    return None


def prepare(method: ClusteredPlain, width: int, device: torch.device) -> None:
    """Makes what calls with heads of this width keep on a device."""
    if method.clustering == "rows" and obstacle() is None and runs_on(device):
        keep_direction(width, method.seed, device)


def attend(
    inputs: AttentionInputs, method: ClusteredPlain, thresholds: object = None, *, count: bool = False
) -> tuple[Tensor, ClusterCounts | None]:
    """As method.attend, for a call that `refusal` has nothing against; ValueError for another.

    Points that are as near to one centroid as to another, within rounding, may be in either's cluster; of keys that
    score the same within rounding either may be refined. Where queries of a sequence see different keys, an assertion
    on the device fails. Counting waits for the device.
    """
    reason, ranges = refusal(inputs, method), inputs.visibility
    if reason is not None or not isinstance(ranges, RowRanges):
        raise ValueError(f"not a call for Triton: {reason}")
    query, key, value = (as_rows(tensor.detach()) for tensor in (inputs.query, inputs.key, inputs.value))
    inputs = replace(inputs, query=query, key=key, value=value)
    batch, heads, tokens = query.shape[:3]
    out = torch.empty(batch, tokens, heads, value.shape[3], dtype=value.dtype, device=value.device).transpose(1, 2)
    if not out.numel():
        return out, ClusterCounts(0, 0, 0) if count else None
    # Triton launches on the current GPU. Autocast would round the covariance till it is none any more.
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        sequences = Sequences.of(ranges, method, tokens)
        attend_into(out, inputs, sequences, method)
    return out, _counts(method, sequences, batch, heads) if count else None


def attend_into(out: Tensor, inputs: AttentionInputs, sequences: Sequences, method: ClusteredPlain) -> None:
    """Fills out [B, H, N, E]."""
    tokens, clusters = inputs.key.shape[2], method.clusters
    if tokens == sequences.short:
        refine(inputs, sequences, tokens, out)
        return
    in_order, order = find_clusters(inputs, sequences, method).sort(dim=-1, stable=True)
    attended = attend_centroids(inputs, sequences, clusters, method.refined, order, in_order)
    refine(inputs, sequences, clusters, out, order, in_order, attended)


def _counts(method: ClusteredPlain, sequences: Sequences, batch: int, heads: int) -> ClusterCounts:
    lengths = sequences.lengths.flatten().expand(batch).tolist()
    counts = [method.counts_of(heads, length) for length in lengths if length]
    return ClusterCounts(*(sum(part) for part in zip((0, 0, 0), *counts, strict=True)))
