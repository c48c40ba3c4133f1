"""Top-k and top-theta attention by Triton: what `attend_rows` does in torch, without waiting for the GPU.

Where every row has a threshold, one pass over the keys weighs what exceeds it ("pre-softmax"), or a second one, after a
first that finds what the threshold is relative to and, in decoding, leaves the scores behind. Exact top-k, and rows
without a threshold, have their scores written down for a chunk of queries at a time, whose k-th highest is found there
(see triton_select.py). Where there are few rows, as in decoding, the keys are split among programs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..methods.budget import exact_share
from ..methods.chunk import AttentionInputs, Observer, RowCounts
from ..methods.top_k import TopK
from ..methods.top_theta import TopTheta
from .triton_arguments import attention_refusal
from .triton_row_work import RowKernels

if TYPE_CHECKING:
    from ..thresholds import ModuleThresholds

Method = TopK | TopTheta

NAME = "triton"  # of this way through a call, for `paths`


def refusal(inputs: AttentionInputs, method: Method, observer: Observer | None = None) -> str | None:
    """Why a call goes the torch way, in a few words; None if the Triton kernels take it."""
    shared = attention_refusal(inputs, observer)
    if shared is not None:
        return shared
    if method.protect_first or method.protect_recent:
        return "protected keys"
    if isinstance(inputs.bias, Tensor) and method.compensation == "sdc+vmc":
        return "a mean of values under a position bias, which may hide keys"
    return None


def attend(
    inputs: AttentionInputs, method: Method, thresholds: ModuleThresholds | None = None, *, count: bool = False
) -> tuple[Tensor, RowCounts | None]:
    """As method.attend, for a call that `refusal` has nothing against.

    What is kept differs only where two scores tie within rounding. Denominator "rounded" is the exact one. A value that
    is not finite spoils all of a row that has it in its mean of values. Counts of several queries have no V rows.
    """
    value = inputs.value
    batch, heads, queries, _ = inputs.query.shape
    out = value.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    if out.numel() == 0 or value.shape[2] == 0:
        return out.zero_(), _no_counts(inputs) if count else None
    with torch.cuda.device_of(value):
        scored = not _every_row_has_a_threshold(method, thresholds, value.shape[2])
        kernels = RowKernels(inputs, method, thresholds, out, scored=scored, count=count)
        for start in range(0, queries, kernels.chunk):
            kernels.run(start, min(kernels.chunk, queries - start))
        return out, kernels.counts() if count else None


def _every_row_has_a_threshold(method: Method, thresholds: ModuleThresholds | None, keys: int) -> bool:
    """Whether one pass over a row's scores can tell what it keeps: it needs no exact top-k, for sure."""
    if not isinstance(method, TopTheta) or thresholds is None or method.min_keep > 1:
        return False
    if method.keep is None:
        shortest = (method.k or 0) + 1  # of the rows that drop a key
    else:
        share = exact_share(method.keep)
        if share == 1:
            return True
        shortest = math.ceil(1 / (1 - share))
    return thresholds.shortest <= max(shortest, method.min_length) and keys <= thresholds.longest


def _no_counts(inputs: AttentionInputs) -> RowCounts:
    (batch, heads, queries, _), groups = inputs.query.shape, inputs.key.shape[1]
    none = torch.zeros(batch, heads, queries, dtype=torch.bool, device=inputs.query.device)
    v_rows = torch.zeros(batch, groups, 1, dtype=torch.int64, device=none.device) if queries == 1 else None
    return RowCounts(none.long(), none, none, v_rows)
