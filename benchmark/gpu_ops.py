"""Times of the Triton kernels beside torch's flash attention, FlexAttention and eager attention, as a Markdown table.

    python -m hf_sparsify.benchmark.ops --device cuda            # `make bench BENCH='--device cuda'`
    python -m hf_sparsify.benchmark.ops --device cuda --quick    # 4k tokens, one sequence

All ways get the same inputs and take turns. Each call is timed by CUDA events, after the cache was flushed. Some rows
are checked against the definition in float64. A wrong result, or a speed below its floor, makes the exit code 1; what
does not fit in memory is left out with a line that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..environment import describe_environment
from ..errors import SparsifyError, UsageError, is_out_of_memory
from ..files import write_file
from ..patcher.binding.loading import resolve_device
from ..patcher.kernels.triton_library import describe, obstacle
from .gpu_cases import DENSE, GpuCase, Setup, cases
from .gpu_dense import EAGER, FLEX, SDPA
from .gpu_timing import EventTimer, Timer, bandwidth, matrix_peak, timed
from .op_cases import Checked
from .timing import Spread, ratios

OURS = "ours"
# Of the largest element of an output row: inputs, weights and outputs are rounded to bfloat16.
TOLERANCE = 0.02
MOST_ROWS_OFF = 0.05  # where two scores tie within rounding, either may be kept
SECONDS, QUICK_SECONDS = 4.0, 0.5  # of rounds, per case


@dataclass(frozen=True)
class Peaks:
    """What the card reaches: bytes per second, and floating-point operations per second."""

    bandwidth: Spread
    matrix: Spread


@dataclass(frozen=True)
class GpuResult:
    """How many times faster than each other way ours is. seconds: of a call. moved, multiplied, floor: as in GpuCase.

    error: the largest among the checked rows, None where none was; rows_off of rows_checked do not agree.
    """

    name: str
    size: str
    floor: float | None
    times: dict[str, Spread]
    seconds: Spread
    moved: float
    multiplied: float
    kept: float | None
    error: float | None
    rows_off: int
    rows_checked: int

    @property
    def right(self) -> bool:
        return self.rows_off <= MOST_ROWS_OFF * self.rows_checked

    @property
    def shortfall(self) -> str | None:
        """What is below the floor; None if nothing is. It holds beside SDPA, or the dense layer."""
        if self.floor is None:
            return None
        for name in (SDPA, DENSE):
            if name in self.times and self.times[name].median < self.floor:
                return f"{self.name}, {self.size} ({self.times[name].median:.2f} of {self.floor:g})"
        return None


def gpu_of(name: str) -> torch.device:
    """The device of --device. UsageError for what is no GPU, or not there; SparsifyError without Triton."""
    try:
        device = resolve_device(name)
    except UsageError as error:
        raise UsageError(f"--device {name}: {error}") from None
    if device.type != "cuda":
        raise UsageError(f"--device {name}: operations are measured on cpu or cuda[:n]")
    if obstacle() is not None:
        raise SparsifyError(f"--device {name}: there are no Triton kernels to measure: attention runs in {describe()}")
    return device


def measure_gpu(device: torch.device, *, quick: bool, json_file: Path | None) -> None:
    """Measures and prints everything. Raises SparsifyError for wrong results and for speeds below their floors."""
    torch.cuda.set_device(device)
    timer = EventTimer(device)
    peaks = Peaks(bandwidth(timer, device), matrix_peak(timer, device))
    print("\n".join(header(peaks)), flush=True)
    made = cases(Setup(device), quick=quick)
    results = list(measured(made, timer, QUICK_SECONDS if quick else SECONDS, peaks))
    if json_file is not None:
        write_json(json_file, peaks, results)
    wrong = [f"{result.name}, {result.size}" for result in results if not result.right]
    below = [result.shortfall for result in results if result.shortfall is not None]
    print("\n".join(["", "Below the floor:", *(f"- {each}" for each in below or ["nothing"])]))
    if wrong:
        raise SparsifyError(f"not what the definition says: {'; '.join(wrong)}")
    if below:
        raise SparsifyError(f"below the floor: {'; '.join(below)}")


def measured(
    made: Iterator[tuple[str, Callable[[], GpuCase]]], timer: Timer, seconds: float, peaks: Peaks
) -> Iterator[GpuResult]:
    """Measures the cases one after the other, and prints a line of the table for each."""
    for name, make in made:
        try:
            result, missing = measure(make(), timer, seconds)
        except (RuntimeError, MemoryError) as error:
            _only_memory(error)
            print(f"| {name}: skipped, does not fit in memory |", flush=True)
            continue
        print(line(result, peaks, missing), flush=True)
        yield result


def measure(case: GpuCase, timer: Timer, seconds: float) -> tuple[GpuResult, list[str]]:
    """One case, and the names of the other ways that do not fit in memory."""
    fitting, missing = {OURS: case.ours}, []
    timer(case.ours)
    for name, way in case.others.items():
        try:
            timer(way)
            fitting[name] = way
        except (RuntimeError, MemoryError) as error:
            _only_memory(error)
            missing.append(name)
    times = timed(fitting, timer, seconds)
    largest, off, checked = (None, 0, 0) if case.checked is None else errors(case.checked)
    result = GpuResult(
        name=case.name,
        size=case.size,
        floor=case.floor,
        times={name: ratios(times[name], times[OURS]) for name in fitting if name != OURS},
        seconds=Spread.of(times[OURS]),
        moved=case.moved,
        multiplied=case.multiplied,
        kept=None if case.checked is None else case.checked.kept,
        error=largest,
        rows_off=off,
        rows_checked=checked,
    )
    return result, missing


def _only_memory(error: BaseException) -> None:
    """Raises an error that is no lack of memory; else gives back what torch keeps for later."""
    if not is_out_of_memory(error):
        raise error
    torch.cuda.empty_cache()


def errors(checked: Checked) -> tuple[float, int, int]:
    """The largest error of the rows that agree, relative to a row's largest element; rows that do not; rows."""
    difference = (checked.got.double() - checked.expected).abs().amax(-1)
    relative = difference / checked.expected.abs().amax(-1).clamp_min(1e-30)
    off = ~(relative <= TOLERANCE)  # NaN too
    largest = float("nan") if bool(off.all()) else float(relative[~off].amax())
    return largest, int(off.sum()), len(relative)


def header(peaks: Peaks) -> Iterator[str]:
    """What was measured on what, and the head of the table."""
    for name, found in describe_environment().items():
        if name.startswith(("cuda", "processor", "hf-sparsify", "torch", "python", "platform", "attention kernels on")):
            yield f"- {name}: {found}"
    yield f"- copy within the device: {spread(peaks.bandwidth, 1e-9, 0)} GB/s"
    yield f"- bfloat16 matrix product: {spread(peaks.matrix, 1e-12, 0)} TFLOP/s"
    columns = [
        *("operation", "size", "floor", f"times {SDPA} or {DENSE}", f"times {FLEX}", f"times {EAGER}", "ms", "MB"),
        *("of bandwidth", "of matrix peak", "kept", "largest error"),
    ]
    yield from ("", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns))


def line(result: GpuResult, peaks: Peaks, missing: list[str]) -> str:
    """A line of the table: medians and quartiles."""
    error = "not checked" if result.error is None else f"{result.error:.0e}"
    if result.rows_off:
        error += f", {result.rows_off} of {result.rows_checked} rows off"
    first = SDPA if SDPA in (*result.times, *missing) else DENSE
    others = [
        "no memory" if name in missing else spread(result.times[name]) if name in result.times else "-"
        for name in (first, FLEX, EAGER)
    ]
    median = result.seconds.median
    cells = [
        *(result.name, result.size, "-" if result.floor is None else f"{result.floor:g}"),
        *others,
        spread(result.seconds, 1e3, 3),
        f"{result.moved / 1e6:.1f}",
        f"{result.moved / median / peaks.bandwidth.median:.0%}",
        f"{result.multiplied / median / peaks.matrix.median:.0%}",
        "-" if result.kept is None else f"{result.kept:.1%}",
        error if result.right else f"WRONG: {error}",
    ]
    return "| " + " | ".join(cells) + " |"


def spread(values: Spread, factor: float = 1.0, digits: int = 2) -> str:
    low, median, high = (f"{factor * value:.{digits}f}" for value in (values.low, values.median, values.high))
    return f"{median} ({low} to {high})"


def write_json(path: Path, peaks: Peaks, results: list[GpuResult]) -> None:
    content = {
        "environment": describe_environment(),
        "bytes_per_second": asdict(peaks.bandwidth),
        "flops_per_second": asdict(peaks.matrix),
        "operations": [asdict(result) for result in results],
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
