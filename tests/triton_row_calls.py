"""Calls of top-k and top-theta in Triton whose kernels are compiled for a GPU (see triton_builds.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from hf_sparsify.patcher.kernels import triton_rows
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from hf_sparsify.patcher.thresholds import ModuleThresholds

PREFILL, DECODING = 64, 1
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
    post, dropped, bound, plain = METHODS[1:]
    half, single = torch.bfloat16, torch.float32
    yield partial(call, PREFILL, 128, half, METHODS[0])
    yield partial(call, DECODING, 128, half, post)
    yield partial(call, PREFILL, 128, torch.float16, plain)
    yield partial(call, PREFILL, 64, half, bound)
    yield partial(call, DECODING, 64, single, post)
    yield partial(call, PREFILL, 128, single, post)
    for queries, dtype in itertools.product((PREFILL, DECODING), (half, single)):
        yield partial(call, queries, 256, dtype, dropped)
    more = {
        "visibility": FullMask(torch.ones(1, 1, PREFILL, 4096, dtype=torch.bool)),
        "bias": torch.zeros(1, 8, PREFILL, 4096),
        "softcap": 30.0,
        "sinks": torch.zeros(8),
    }
    yield partial(call, PREFILL, 64, half, plain, **more)
    by_distance = DistanceBias(torch.zeros(1, 8, PREFILL + 4095), PREFILL)
    yield partial(call, PREFILL, 80, torch.float16, post, bias=by_distance)


CALLS = list(_every())
