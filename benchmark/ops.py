"""Times of the native kernels beside torch's own dense operations, as Markdown tables.

    python -m hf_sparsify.benchmark.ops            # a few minutes; `make bench`
    python -m hf_sparsify.benchmark.ops --quick    # small sizes, less than a minute
    python -m hf_sparsify.benchmark.ops --device cuda    # the Triton kernels; see gpu_ops.py

Both sides get the same inputs in one process and take turns. Every result is checked against its definition in float64:
a wrong one makes the exit code 1. A speed below its floor is named at the end and changes nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..environment import describe_environment
from ..errors import SparsifyError, require_at_least_one
from ..files import write_file
from ..patcher.kernels import clusters
from ..patcher.kernels.library import describe, native
from ..patcher.methods import Clustered
from ..terminal import exit_codes
from .gpu_ops import gpu_of, measure_gpu
from .op_cases import Arm, Case, Checked, cases
from .op_inputs import attention
from .op_memory import DENSE, WAYS, extra_bytes
from .op_overhead import overhead
from .timing import Spread, interleaved, ratios

TOLERANCE = 1e-4  # of an element of an output row; outputs are about 1
# Where two scores tie within rounding, either may be kept, and the row is another; more rows than these are wrong.
MOST_ROWS_OFF = 0.05
FEWEST, MOST = 3, 100  # rounds
SECONDS, QUICK_SECONDS = 5.0, 0.3  # of rounds, per case and number of threads
LEAST = "least"

GROWTH, MOST_GROWTH = (8192, 16384), 2.2
MEMORY_TOKENS, MOST_MEMORY = 16384, 2


@dataclass(frozen=True)
class Result:
    """How many times faster than the dense way one of ours is, and whether it is right.

    one: on one thread, by CPU time; many: on several, by wall time. limit: the dense time over that of the part that
    cannot be avoided, on one thread. kept: share of what is visible. error: the largest among the checked rows that
    agree with the definition; rows_off of rows_checked do not.
    """

    name: str
    size: str
    floor: float | None
    one: Spread
    many: Spread
    limit: float | None
    kept: float | None
    error: float
    rows_off: int
    rows_checked: int

    @property
    def right(self) -> bool:
        return self.rows_off <= MOST_ROWS_OFF * self.rows_checked


def measured(case: Case, threads: int, seconds: float) -> list[Result]:
    """The arms of a case. seconds: about how long each of the two timings takes, if FEWEST rounds take no longer."""
    checked = [arm.check() for arm in case.arms]
    ways = {DENSE: case.dense, LEAST: case.least, **{arm.name: arm.run for arm in case.arms}}
    one = _timed(ways, 1, seconds, time.process_time)
    many = _timed({name: way for name, way in ways.items() if name != LEAST}, threads, seconds, time.perf_counter)
    return [
        _result(case, arm, check, ratios(one[DENSE], one[LEAST]).median, one, many)
        for arm, check in zip(case.arms, checked, strict=True)
    ]


def _timed(
    ways: dict[str, Callable[[], object]], threads: int, seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    first = interleaved(ways, 1, clock, warm_up=0)  # also warms up
    rounds = int(seconds / (time.perf_counter() - start))
    if rounds >= FEWEST:
        return interleaved(ways, min(rounds, MOST), clock, warm_up=0)
    # So long that warming up is nothing beside it.
    rest = interleaved(ways, FEWEST - 1, clock, warm_up=0)
    return {name: first[name] + rest[name] for name in ways}


def _result(
    case: Case, arm: Arm, check: Checked, whole: float, one: dict[str, list[float]], many: dict[str, list[float]]
) -> Result:
    errors = (check.got.double() - check.expected).abs().amax(-1)
    off = ~(errors <= TOLERANCE)  # NaN too
    return Result(
        name=arm.name,
        size=case.size,
        floor=arm.floor,
        one=ratios(one[DENSE], one[arm.name]),
        many=ratios(many[DENSE], many[arm.name]),
        limit=None if check.least is None else whole / check.least,
        kept=check.kept,
        error=float(errors[~off].amax()) if not bool(off.all()) else float("nan"),
        rows_off=int(off.sum()),
        rows_checked=len(errors),
    )


def growth(rounds: int) -> Spread:
    """How many times longer clustered attention takes for 16k tokens than for 8k, on one thread, by CPU time."""
    torch.set_num_threads(1)
    short, long = (attention(tokens, tokens, 8, 8) for tokens in GROWTH)
    ways = {"short": lambda: clusters.attend(short, Clustered()), "long": lambda: clusters.attend(long, Clustered())}
    times = interleaved(ways, rounds, time.process_time)
    return ratios(times["long"], times["short"])


def header(threads: int) -> Iterator[str]:
    """What was measured on what, and the head of the table."""
    found = describe_environment()
    for name in ("processor", "cpu capability", "attention kernels", "hf-sparsify", "torch", "python", "platform"):
        if name in found:
            yield f"- {name}: {found[name]}"
    yield f"- load average of the last minute: {os.getloadavg()[0]:.1f}"
    yield f"- OMP_WAIT_POLICY: {os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    columns = [
        "operation",
        "size",
        "floor",
        "times dense, 1 thread, CPU time",
        f"times dense, {threads} threads, wall time",
        "limit",
        "of limit",
        "kept",
        "largest error",
    ]
    yield from ("", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns))


def line(result: Result) -> str:
    """A line of the table: medians and quartiles."""
    error = f"{result.error:.0e}"
    if result.rows_off:
        error += f", {result.rows_off} of {result.rows_checked} rows off"
    cells = [
        result.name,
        result.size,
        "-" if result.floor is None else f"{result.floor:g}",
        shown(result.one),
        shown(result.many),
        "-" if result.limit is None else f"{result.limit:.2f}",
        "-" if result.limit is None else f"{result.one.median / result.limit:.0%}",
        "-" if result.kept is None else f"{result.kept:.1%}",
        error if result.right else f"WRONG: {error}",
    ]
    return "| " + " | ".join(cells) + " |"


def shown(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def memory_lines(extra: dict[str, int]) -> Iterator[str]:
    columns = f"| peak memory beside the inputs, 16k tokens | MB | times {DENSE}, at most {MOST_MEMORY} |"
    yield from ("", columns, "|---|---|---|")
    for way, size in extra.items():
        yield f"| {way} | {size / 1e6:.1f} | {size / extra[DENSE]:.2f} |"


def overhead_lines(calls: dict[str, Spread]) -> Iterator[str]:
    yield from ("", "| a call with next to no work, 1 thread | microseconds of CPU time |", "|---|---|")
    for name, spread in calls.items():
        yield f"| {name} | {shown(spread)} |"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    help="Times of the native kernels beside torch's own dense operations, as Markdown tables; every result is checked "
    "against its definition in float64."
)
@exit_codes
@torch.no_grad()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, no floors, no memory.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of the second figure.")] = min(2, os.cpu_count() or 1),
    device: Annotated[str, typer.Option(help="cpu, or cuda[:n] for the Triton kernels.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file, too.")] = None,
) -> None:
    require_at_least_one(threads=threads)
    if device != "cpu":
        measure_gpu(gpu_of(device), quick=quick, json_file=json_file)
        return
    if native() is None:
        raise SparsifyError(f"there are no native kernels to measure: attention runs in {describe()}")
    torch.set_num_threads(threads)
    print("\n".join(header(threads)), flush=True)
    results: list[Result] = []
    for case in cases(quick):
        for result in measured(case, threads, QUICK_SECONDS if quick else SECONDS):
            results.append(result)
            print(line(result), flush=True)
    calls = overhead(rounds=3 if quick else 25)
    print("\n".join(overhead_lines(calls)), flush=True)
    grown, memory = (None, {}) if quick else long_sequences(threads)
    below = shortfalls(results, threads, memory, grown) or ["nothing"]
    print("\n".join(["", "Below the floor:", *(f"- {each}" for each in below)]))
    if json_file is not None:
        write_json(json_file, results, calls, memory, grown)
    wrong = [f"{result.name}, {result.size}" for result in results if not result.right]
    if wrong:
        raise SparsifyError(f"not what the definition says: {'; '.join(wrong)}")


def long_sequences(threads: int) -> tuple[Spread, dict[str, int]]:
    """Prints and returns how time grows, and the peaks of memory, where a process is told its own."""
    grown = growth(rounds=9)
    print(f"\nClustered attention, 16k tokens: {shown(grown)} times the time of 8k, at most {MOST_GROWTH}", flush=True)
    memory = {way: extra_bytes(way, MEMORY_TOKENS, threads) for way in WAYS} if sys.platform == "linux" else {}
    if memory:
        print("\n".join(memory_lines(memory)), flush=True)
    return grown, memory


def shortfalls(results: list[Result], threads: int, memory: dict[str, int], grown: Spread | None) -> list[str]:
    """What is slower or larger than it is to be."""
    found = []
    for result in results:
        figures = {"1 thread": result.one, f"{threads} threads": result.many}
        low = [f"{at} {figure.median:.2f}" for at, figure in figures.items() if figure.median < (result.floor or 0)]
        if low:
            found.append(f"{result.name}, {result.size} ({', '.join(low)} of {result.floor:g})")
    for way, size in memory.items():
        if size > MOST_MEMORY * memory[DENSE]:
            found.append(f"memory of {way}")
    if grown is not None and grown.median > MOST_GROWTH:
        found.append("growth of clustered attention")
    return found


def write_json(
    path: Path, results: list[Result], calls: dict[str, Spread], memory: dict[str, int], grown: Spread | None
) -> None:
    content = {
        "environment": describe_environment(),
        "operations": [asdict(result) for result in results],
        "call_microseconds": {name: asdict(spread) for name, spread in calls.items()},
        "peak_bytes": memory,
        "growth": None if grown is None else asdict(grown),
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    app()
