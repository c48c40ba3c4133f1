"""Times on a GPU by its own clock with a cold cache, and how fast that card moves bytes and multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from .timing import Spread, order

# Written before every timing: larger than any second-level cache.
FLUSH_BYTES = 2**29
# The device waits so many of its cycles, about a millisecond, so that a call is queued before it begins: what the
# program itself takes to start kernels is not timed.
HEAD_START = 2_000_000
COPY_BYTES = 2**30
SIDE = 8192  # of the matrices
FEWEST, MOST = 5, 50  # rounds
PEAK_ROUNDS = 10

Timer = Callable[[Callable[[], object]], float]


class EventTimer:
    """Seconds of one call between two CUDA events, after the cache was flushed. device: a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.zero_()
        torch.cuda._sleep(HEAD_START)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def timed(ways: Mapping[str, Callable[[], object]], timer: Timer, seconds: float) -> dict[str, list[float]]:
    """Seconds of one call by way and round, interleaved as in timing.interleaved, for about so long in all.

    Every way has run once before: what compiles has done so.
    """
    start = time.perf_counter()
    for run in ways.values():
        timer(run)
    rounds = min(max(int(seconds / (time.perf_counter() - start)), FEWEST), MOST)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds):
        for name in order(list(ways), index):
            times[name].append(timer(ways[name]))
    return times


def bandwidth(timer: Timer, device: torch.device) -> Spread:
    """Bytes per second, read and written, of a copy of 1 GiB within the device."""
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return _rate(lambda: target.copy_(source), 2 * COPY_BYTES, timer)


def matrix_peak(timer: Timer, device: torch.device) -> Spread:
    """Floating-point operations per second of a bfloat16 product of two square matrices."""
    left, right = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    return _rate(lambda: left @ right, 2 * SIDE**3, timer)


def _rate(run: Callable[[], object], work: int, timer: Timer) -> Spread:
    run()
    return Spread.of([work / timer(run) for _ in range(PEAK_ROUNDS)])
