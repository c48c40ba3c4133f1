"""Calls of clustered attention, refined, plain and dense, whose Triton kernels triton_builds.py compiles."""

from __future__ import annotations

from functools import partial

import torch
from hf_sparsify.patcher.kernels.triton_clusters import attend_into
from hf_sparsify.patcher.kernels.triton_sequences import Sequences
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain, RowRanges
from native_clusters import call_of


def attend(
    method: ClusteredPlain, dtype: torch.dtype, width: int, softcap: float | None = None, tokens: int = 200
) -> None:
    inputs = call_of(tokens, batch=2, heads=2, groups=1, width=width, dtype=dtype, softcap=softcap)
    every = RowRanges.all_keys(tokens, tokens)
    ranges = RowRanges(every.first.repeat(2, 1), every.last.repeat(2, 1))
    attend_into(torch.empty_like(inputs.query), inputs, Sequences.of(ranges, method, tokens), method)


# Of other lengths are no other kernels.
CALLS = [
    partial(attend, Clustered(clusters=100), torch.bfloat16, 128),
    partial(attend, Clustered(clusters=100), torch.bfloat16, 128, tokens=1024),
    partial(attend, ClusteredPlain(clusters=100), torch.bfloat16, 128),
    partial(attend, Clustered(min_length=512), torch.float32, 64, softcap=20.0),
    partial(attend, Clustered(clusters=100), torch.float32, 256),
]
