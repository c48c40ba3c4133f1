"""The benchmark of a GPU, with a timer and cases of our own: what it prints, what it skips, when it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_sparsify.benchmark import gpu_ops, ops
from hf_sparsify.benchmark.gpu_cases import GpuCase
from hf_sparsify.benchmark.gpu_dense import EAGER, FLEX, SDPA
from hf_sparsify.benchmark.gpu_ops import GpuResult, Peaks, errors, header, line, measure, measured
from hf_sparsify.benchmark.gpu_timing import FEWEST, MOST, bandwidth, matrix_peak, timed
from hf_sparsify.benchmark.op_cases import Checked
from hf_sparsify.benchmark.timing import Spread
from typer.testing import CliRunner

PEAKS = Peaks(Spread(4e12, 3.9e12, 4.1e12), Spread(8e14, 7e14, 9e14))
RESULT = GpuResult(
    name="threshold decode",
    size="16k tokens, batch 1",
    floor=1.5,
    times={SDPA: Spread(1.6, 1.5, 1.7), FLEX: Spread(2.0, 1.9, 2.1), EAGER: Spread(9.0, 8.0, 10.0)},
    seconds=Spread(2e-5, 1.9e-5, 2.1e-5),
    moved=4e7,
    multiplied=8e8,
    kept=0.1,
    error=0.003,
    rows_off=0,
    rows_checked=32,
)


def nothing() -> None:
    """A way to do no work."""


def too_large() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def seconds_of(times: dict[Callable[[], object], float]) -> Callable[[Callable[[], object]], float]:
    """A timer that knows how long each call takes."""

    def timer(run: Callable[[], object]) -> float:
        run()
        return times[run]

    return timer


def case_of(row: float = 1.0, **others: Callable[[], object]) -> GpuCase:
    """Ours, whose one row is off by what `row` is above 1."""
    checked = Checked(torch.tensor([[row, 0.5]]), torch.tensor([[1.0, 0.5]], dtype=torch.float64), 0.1)
    return GpuCase("ours", "4 tokens", nothing, others, checked, 8.0, 16.0, 1.5)


def dense() -> None:
    """Another way."""


TIMER = seconds_of({nothing: 0.01, dense: 0.02})


def test_a_result_is_the_ratio_of_times() -> None:
    result, missing = measure(case_of(**{SDPA: dense, EAGER: too_large}), TIMER, seconds=0.0)
    assert missing == [EAGER]
    assert result.times == {SDPA: Spread(2.0, 2.0, 2.0)}
    assert result.seconds.median == 0.01
    assert (result.error, result.rows_off, result.rows_checked, result.kept) == (0.0, 0, 1, 0.1)
    assert result.shortfall is None
    assert replace(result, floor=2.5).shortfall == "ours, 4 tokens (2.00 of 2.5)"


def test_errors_of_the_others_are_not_hidden() -> None:
    def broken() -> None:
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        measure(case_of(**{SDPA: broken}), TIMER, seconds=0.0)


def test_what_does_not_fit_is_skipped_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    made: Any = iter([("top-k prefill, 128k", too_large), ("ours", lambda: case_of(**{SDPA: dense}))])
    assert [result.name for result in measured(made, TIMER, 0.0, PEAKS)] == ["ours"]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "| top-k prefill, 128k: skipped, does not fit in memory |"
    assert second.startswith("| ours | 4 tokens | 1.5 | 2.00 (2.00 to 2.00) | - | - | 10.000 (")


def test_errors_are_relative_to_the_row() -> None:
    expected = torch.tensor([[0.01, 0.0], [10.0, 0.0]], dtype=torch.float64)
    assert errors(Checked(expected + 0.001, expected)) == (pytest.approx(1e-4), 1, 2)
    largest, off, rows = errors(Checked(torch.full((2, 2), float("nan")), expected))
    assert (str(largest), off, rows) == ("nan", 2, 2)


def test_a_line_says_all() -> None:
    assert line(RESULT, PEAKS, []) == (
        "| threshold decode | 16k tokens, batch 1 | 1.5 | 1.60 (1.50 to 1.70) | 2.00 (1.90 to 2.10) "
        "| 9.00 (8.00 to 10.00) | 0.020 (0.019 to 0.021) | 40.0 | 50% | 5% | 10.0% | 3e-03 |"
    )
    assert "no memory" in line(replace(RESULT, times={SDPA: RESULT.times[SDPA]}), PEAKS, [EAGER])
    assert line(replace(RESULT, rows_off=9), PEAKS, []).endswith("| WRONG: 3e-03, 9 of 32 rows off |")
    assert line(replace(RESULT, error=None, kept=None, floor=None), PEAKS, []).endswith("| - | not checked |")
    head = [*header(PEAKS)]
    assert "- copy within the device: 4000 (3900 to 4100) GB/s" in head
    assert head[-2].count("|") == head[-1].count("|") == line(RESULT, PEAKS, []).count("|")


def test_rounds_are_few_for_long_calls_and_interleaved() -> None:
    ran: list[str] = []
    ways = {name: (lambda name=name: ran.append(name)) for name in "ab"}

    def timer(run: Callable[[], object]) -> float:
        run()
        return 1.0

    times = timed(ways, timer, seconds=0.0)
    assert {name: len(each) for name, each in times.items()} == {"a": FEWEST, "b": FEWEST}
    assert ran[2:6] == ["a", "b", "b", "a"]
    assert len(timed(ways, timer, seconds=100.0)["a"]) == MOST


def test_rates_are_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_sparsify.benchmark import gpu_timing

    monkeypatch.setattr(gpu_timing, "COPY_BYTES", 1000)
    monkeypatch.setattr(gpu_timing, "SIDE", 8)
    cpu = torch.device("cpu")
    assert bandwidth(lambda run: 0.5, cpu).median == 4000
    assert matrix_peak(lambda run: 0.5, cpu).median == 2 * 8**3 * 2


@pytest.fixture
def imaginary_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "gpu_of", lambda name: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(gpu_ops, "EventTimer", lambda device: TIMER)
    monkeypatch.setattr(gpu_ops, "bandwidth", lambda timer, device: PEAKS.bandwidth)
    monkeypatch.setattr(gpu_ops, "matrix_peak", lambda timer, device: PEAKS.matrix)


@pytest.mark.parametrize(
    ("row", "floor", "code", "said"),
    [(1.0, 1.5, 0, "nothing"), (1.0, 2.5, 1, "2.00 of 2.5"), (1.5, 1.5, 1, "nothing")],
    ids=["right", "slow", "wrong"],
)
def test_what_is_slow_or_wrong_fails(
    row: float, floor: float, code: int, said: str, imaginary_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one(setup: Any, *, quick: bool) -> Iterator[Any]:
        yield "ours", lambda: replace(case_of(row, **{SDPA: dense}), floor=floor)

    monkeypatch.setattr(gpu_ops, "cases", one)
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(ops.app, ["--device", "cuda", "--quick", "--json", str(file)])
    assert done.exit_code == code, done.output
    assert re.search(rf"^Below the floor:\n- .*{said}", done.stdout, re.MULTILINE)
    assert ("WRONG" in done.stdout) == (row != 1.0)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["operations"][0]["times"] == {SDPA: {"median": 2.0, "low": 2.0, "high": 2.0}}
    assert found["bytes_per_second"]["median"] == 4e12


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("cuda", 2, "--device cuda: device cuda is not available here"),
        ("tpu", 2, "--device tpu: device must be"),
        ("auto", 2, "--device auto: operations are measured on cpu or cuda[:n]"),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_the_options_name(
    name: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = CliRunner().invoke(ops.app, ["--device", name])
    assert done.exit_code == code
    assert message in done.stderr


def test_a_gpu_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ops, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(gpu_ops, "obstacle", lambda: "no Triton")
    done = CliRunner().invoke(ops.app, ["--device", "cuda"])
    assert done.exit_code == 1
    assert "--device cuda: there are no Triton kernels to measure" in done.stderr
