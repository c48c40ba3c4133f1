"""Calls of clustered attention, whole or in its two steps, by the native library."""

from __future__ import annotations

from dataclasses import replace

import torch
from hf_sparsify.patcher.kernels import clusters as kernel
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, RowRanges
from torch import Tensor

METHOD_LIST = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5), Clustered(clusters=4, k=5, iterations=0)]


def call_of(
    tokens: int = 20,
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    value_width: int | None = None,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    seed: int = 0,
) -> AttentionInputs:
    """Random self-attention; rows of a head lie apart, as a model's do."""
    generator = torch.Generator().manual_seed(seed)

    def rows(heads: int, width: int) -> Tensor:
        return torch.randn(batch, tokens, heads, width, generator=generator).to(dtype).transpose(1, 2)

    query, key, value = rows(heads, width), rows(groups, width), rows(groups, value_width or width)
    return AttentionInputs(query, key, value, RowRanges.all_keys(tokens, tokens), scale=width**-0.5, softcap=softcap)


def attend(method: ClusteredPlain, call: AttentionInputs, threads: int | None = 1) -> Tensor:
    assert kernel.refusal(call, method) is None
    return kernel.attend(call, method, threads=threads)[0]


def double(call: AttentionInputs) -> AttentionInputs:
    return replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def clustered(call: AttentionInputs, method: ClusteredPlain, threads: int = 1) -> Tensor:
    """The library's clusters of sequences without padding, [B, H, N]."""
    work = kernel.prepared(call, method, threads)
    work.assigned.fill_(-1)
    kernel.find_clusters(work)
    return work.assigned.view(call.query.shape[:3]).long()


def given_clusters(call: AttentionInputs, method: ClusteredPlain, assigned: Tensor, threads: int = 1) -> Tensor:
    """The library's attention of sequences without padding, into an output that was NaN."""
    work = kernel.prepared(call, method, threads)
    work.out.fill_(torch.nan)
    work.assigned.copy_(assigned.flatten())
    kernel.attend_clusters(work)
    return work.out


def random_clusters(call: AttentionInputs, clusters: int, seed: int = 0) -> Tensor:
    return torch.randint(0, clusters, call.query.shape[:3], generator=torch.Generator().manual_seed(seed))
