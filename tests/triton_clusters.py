"""Calls of clustered attention, whole or given its clusters, by Triton: on a GPU, or interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.kernels import triton_clusters as kernel
from hf_sparsify.patcher.kernels.triton_centroids import attend_centroids
from hf_sparsify.patcher.kernels.triton_k_means import find_clusters
from hf_sparsify.patcher.kernels.triton_library import runs_on
from hf_sparsify.patcher.kernels.triton_refine import refine
from hf_sparsify.patcher.kernels.triton_sequences import Sequences
from hf_sparsify.patcher.methods import AttentionInputs, ClusteredPlain, RowRanges
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
MARKS = [
    pytest.mark.skipif(not runs_on(torch.device(DEVICE)), reason="no GPU, and Triton does not interpret"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # of NumPy, which interprets
]


def on_device(call: AttentionInputs) -> AttentionInputs:
    query, key, value = (tensor.to(DEVICE) for tensor in (call.query, call.key, call.value))
    return replace(call, query=query, key=key, value=value, visibility=call.visibility.to(torch.device(DEVICE)))


def attend(method: ClusteredPlain, call: AttentionInputs) -> Tensor:
    call = on_device(call)
    assert kernel.refusal(call, method) is None
    return kernel.attend(call, method)[0].cpu()


def between(call: AttentionInputs, first: list[int], last: list[int], poison: float = torch.nan) -> AttentionInputs:
    """The tokens first[b] <= i < last[b] of each sequence; the rest is padding, which holds `poison`."""
    tokens = call.query.shape[2]
    low, high = (torch.tensor(ends).unsqueeze(1).expand(-1, tokens) for ends in (first, last))
    hidden = ~valid_tokens(first, last, tokens)[:, None, :, None]
    parts = {name: getattr(call, name).masked_fill(hidden, poison) for name in ("query", "key", "value")}
    return replace(call, **parts, visibility=RowRanges(low, high))


def valid_tokens(first: list[int], last: list[int], tokens: int) -> Tensor:
    """bool [B, N]."""
    position = torch.arange(tokens)
    return (position >= torch.tensor(first).unsqueeze(1)) & (position < torch.tensor(last).unsqueeze(1))


def clustered(call: AttentionInputs, method: ClusteredPlain) -> Tensor:
    """Triton's clusters, int64 [B, H, N]."""
    call = on_device(call)
    sequences = Sequences.of(call.visibility, method, call.query.shape[2])
    return find_clusters(call, sequences, method).cpu().long()


def given_clusters(call: AttentionInputs, method: ClusteredPlain, assigned: Tensor) -> Tensor:
    """Triton's attention of sequences that are not short, into an output that was NaN."""
    call = on_device(call)
    batch, heads, tokens = call.query.shape[:3]
    sequences = Sequences.of(call.visibility, method, tokens)
    assert tokens > sequences.short
    in_order, order = assigned.int().to(DEVICE).sort(dim=-1, stable=True)
    attended = attend_centroids(call, sequences, method.clusters, method.refined, order, in_order)
    out = torch.full((batch, tokens, heads, call.value.shape[3]), torch.nan, dtype=call.value.dtype, device=DEVICE)
    out = out.transpose(1, 2)
    refine(call, sequences, method.clusters, out, order, in_order, attended)
    return out.cpu()
