"""Calls of clustered attention that between them launch every form of its Triton kernels, for triton_builds.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hf_sparsify.patcher.kernels.triton_clusters import attend_into
from hf_sparsify.patcher.kernels.triton_sequences import Sequences
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain
from native_clusters import call_of

WIDTHS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def attend(method: ClusteredPlain, dtype: torch.dtype, width: int, softcap: float | None = None) -> None:
    inputs = call_of(200, batch=1, heads=2, groups=1, width=width, dtype=dtype, softcap=softcap)
    sequences = Sequences.of(inputs.visibility, method, tokens=200)
    attend_into(torch.empty_like(inputs.query), inputs, sequences, method)


def calls(dtype: torch.dtype, width: int) -> list[Callable[[], None]]:
    return [
        partial(attend, Clustered(clusters=100), dtype, width),
        partial(attend, ClusteredPlain(clusters=100), dtype, width),
        partial(attend, Clustered(min_length=512), dtype, width, softcap=20.0),
    ]


CALLS = [call for dtype in DTYPES for width in WIDTHS for call in calls(dtype, width)]
