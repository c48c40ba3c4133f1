"""The benchmark of operations: figures from times, the table, and what it says of wrong and of slow results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_sparsify.benchmark import ops
from hf_sparsify.benchmark.op_cases import Arm, Case, Checked, causal
from hf_sparsify.benchmark.op_memory import DENSE, extra_bytes
from hf_sparsify.benchmark.op_overhead import overhead
from hf_sparsify.benchmark.ops import Result, line, measured, shortfalls
from hf_sparsify.benchmark.timing import Spread
from hf_sparsify.patcher.kernels.library import native
from typer.testing import CliRunner

needs_native = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

RESULT = Result("top-k", "1k tokens", 2.0, Spread(2.5, 2.4, 2.6), Spread(2.1, 2.0, 2.2), 5.0, 0.125, 3e-7, 0, 512)


def busy(seconds: float) -> Callable[[], None]:
    """Spends that much CPU time."""

    def run() -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return run


def case_of(*rows: float, least: float | None = 0.5) -> Case:
    """An arm four times as fast as the dense way, whose rows are off by so much."""
    errors = torch.tensor(rows).unsqueeze(1)
    checked = Checked(errors, torch.zeros_like(errors, dtype=torch.float64), 0.25, least)
    arm = Arm("ours", busy(0.005), lambda: checked, 3.0)
    return Case("5 tokens", busy(0.02), busy(0.01), [arm])


@pytest.fixture(autouse=True)
def threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_figures_are_those_of_the_times() -> None:
    (result,) = measured(case_of(1e-7, -3e-7), threads=1, seconds=0.2)
    assert (result.name, result.size, result.floor, result.kept) == ("ours", "5 tokens", 3.0, 0.25)
    # The dense way spends four times as much CPU time, and half of what twice as much takes is the limit.
    assert result.one.median == pytest.approx(4, rel=0.2)
    assert result.limit == pytest.approx(4, rel=0.2)
    assert result.many.low <= result.many.median <= result.many.high
    assert (result.error, result.rows_off, result.rows_checked) == (pytest.approx(3e-7), 0, 2)
    assert result.right


def test_work_without_a_limit_has_none() -> None:
    assert measured(case_of(0.0, least=None), threads=1, seconds=0.0)[0].limit is None


def test_a_few_rows_may_tie_and_more_are_wrong() -> None:
    (tied,) = measured(case_of(*[1e-6] * 99, 0.5), threads=1, seconds=0.0)
    assert (tied.rows_off, tied.right, tied.error) == (1, True, pytest.approx(1e-6))
    (wrong,) = measured(case_of(*[1e-6] * 9, 0.5), threads=1, seconds=0.0)
    assert not wrong.right
    (broken,) = measured(case_of(float("nan")), threads=1, seconds=0.0)
    assert not broken.right


def test_a_line_says_all() -> None:
    assert line(RESULT) == (
        "| top-k | 1k tokens | 2 | 2.50 (2.40 to 2.60) | 2.10 (2.00 to 2.20) | 5.00 | 50% | 12.5% | 3e-07 |"
    )
    assert line(replace(RESULT, rows_off=1)).endswith("3e-07, 1 of 512 rows off |")
    assert "WRONG" in line(replace(RESULT, rows_off=100))
    assert line(replace(RESULT, floor=None, limit=None, kept=None)).count("| - ") == 4


def test_what_is_below_a_floor_is_named() -> None:
    slow = replace(RESULT, name="slow", many=Spread(1.5, 1.4, 1.6))
    free = replace(slow, name="free", floor=None)
    memory = {DENSE: 100, "top-k": 200, "clustered": 201}
    assert shortfalls([RESULT, slow, free], 2, memory, Spread(2.3, 2.2, 2.4)) == [
        "slow, 1k tokens (2 threads 1.50 of 2)",
        "memory of clustered",
        "growth of clustered attention",
    ]
    assert shortfalls([RESULT], 2, {}, None) == []


@needs_native
def test_quick_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "hf_sparsify.benchmark.ops", "--quick", "--threads", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^- attention kernels: native", done.stdout, re.MULTILINE)
    assert re.search(r"^\| top-k, causal \| 512 tokens \| - \| \d+\.\d\d \(", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("Below the floor:\n- nothing\n")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"operations", "call_microseconds", "environment"} <= found.keys()
    for result in found["operations"]:
        assert 0 < result["one"]["low"] <= result["one"]["median"] <= result["one"]["high"]
        assert result["error"] < 1e-4


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "native", lambda: object())
    monkeypatch.setattr(ops, "overhead", lambda rounds: {})
    for error, code in ((1e-7, 0), (0.5, 1)):
        monkeypatch.setattr(ops, "cases", lambda quick, error=error: [case_of(error)])
        done = CliRunner().invoke(ops.app, ["--quick", "--threads", "1"])
        assert done.exit_code == code, done.output
        assert ("WRONG" in done.stdout) == bool(code)


def test_without_kernels_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "native", lambda: None)
    assert CliRunner().invoke(ops.app, ["--quick"]).exit_code == 1


def test_no_threads_are_refused() -> None:
    assert CliRunner().invoke(ops.app, ["--threads", "0"]).exit_code == 2


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_output_at_least() -> None:
    tokens = 4096
    output = tokens * 8 * 64 * 4
    # The system counts pages in batches.
    assert 0.9 * output < extra_bytes("top-k", tokens, 1) < 10 * output


@needs_native
def test_a_call_costs_more_than_its_refusal() -> None:
    calls = overhead(rounds=1)
    assert 0 < calls["whether the kernel takes the call"].median < calls["the kernel"].median < 1000


@needs_native
def test_the_measured_kernel_is_right() -> None:
    assert all(result.right for result in measured(causal(200, None), threads=2, seconds=0.0))
