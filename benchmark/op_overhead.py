"""What a call of the attention kernels costs apart from its work: one head, one query, eight keys."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ..patcher.kernels import rows
from ..patcher.methods import TopK
from .op_inputs import attention, dense
from .timing import Spread, interleaved

CALLS = 1000  # per timing


def overhead(rounds: int) -> dict[str, Spread]:
    """Microseconds of process CPU time per call, on one thread."""
    torch.set_num_threads(1)
    inputs, method = attention(1, 8, 1, 1), TopK(k=4)
    nothing = replace(inputs, query=inputs.query[:0], key=inputs.key[:0], value=inputs.value[:0])
    arms = {
        "torch SDPA": lambda: dense(inputs),
        "whether the kernel takes the call": lambda: rows.refusal(inputs, method),
        "the kernel": lambda: rows.attend(inputs, method),
        "the kernel, no sequence at all": lambda: rows.attend(nothing, method),
    }
    times = interleaved(arms, rounds, clock=time.process_time, inner=CALLS)
    return {name: Spread.of([1e6 * seconds for seconds in each]) for name, each in times.items()}
