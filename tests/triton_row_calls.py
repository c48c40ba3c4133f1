"""Calls of top-k and top-theta in Triton whose kernels are compiled for a GPU (see triton_builds.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from hf_sparsify.patcher.kernels import triton_rows
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from hf_sparsify.patcher.thresholds import ModuleThresholds

# With many queries no tile of rows shares its keys among programs.
LONG, SHORT, DECODING = 4096, 64, 1
METHODS = [
    TopK(k=8, compensation="sdc+vmc"),
    TopTheta(k=8, compensation="sdc+vmc"),
    TopTheta(k=8, compensation="sdc+vmc", v_mean="dropped", placement="max-relative", denominator="offline"),
    TopTheta(k=8, compensation="sdc", placement="pre-softmax", denominator="exp-threshold"),
    TopTheta(k=8, placement="pre-softmax"),
]


def call(queries: int, width: int, dtype: torch.dtype, method: TopK | TopTheta, **more: Any) -> None:
    """Four heads to a KV head; attention is not run, so that the numbers are none."""
    query = torch.zeros(1, 8, queries, width, dtype=dtype)
    key = torch.zeros(1, 2, 4096, width, dtype=dtype)
    inputs = AttentionInputs(query, key, key, RowRanges.causal(queries, 4096), scale=width**-0.5)
    inputs = AttentionInputs(**{**inputs.__dict__, **more})
    numbers = torch.zeros(8, 2)
    table = ModuleThresholds(torch.tensor([4.0, 9000.0]), numbers, 4, 9000, dropped=numbers)
    thresholds = table if isinstance(method, TopTheta) else None
    triton_rows.attend(inputs, method, thresholds, count=queries == DECODING)


def _every() -> Iterator[Callable[[], None]]:
    top_k, post, dropped, bound, plain = METHODS
    half, single = torch.bfloat16, torch.float32
    yield partial(call, SHORT, 128, half, top_k)
    yield partial(call, LONG, 128, half, post)
    yield partial(call, DECODING, 128, torch.float16, post)
    yield partial(call, SHORT, 256, half, dropped)
    yield partial(call, DECODING, 256, single, dropped)
    yield partial(call, LONG, 64, half, bound)
    more = {
        "visibility": FullMask(torch.ones(1, 1, SHORT, 4096, dtype=torch.bool)),
        "bias": torch.zeros(1, 8, SHORT, 4096),
        "softcap": 30.0,
        "sinks": torch.zeros(8),
    }
    yield partial(call, SHORT, 64, single, plain, **more)
    seen = FullMask(torch.ones(1, 1, DECODING, 4096, dtype=torch.bool))
    yield partial(call, DECODING, 128, half, top_k, visibility=seen)
    by_distance = DistanceBias(torch.zeros(1, 8, SHORT + 4095), SHORT)
    yield partial(call, SHORT, 80, torch.float16, post, bias=by_distance)


CALLS = list(_every())
