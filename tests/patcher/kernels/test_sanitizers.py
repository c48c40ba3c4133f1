"""The kernels under the address and undefined-behaviour sanitizers: csrc/tests, built for each instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[3] / "csrc"
COMPILER = shutil.which("g++")
# Without optimisation it builds in a third of the time, and no read is left out.
FLAGS = [
    *("-std=c++17", "-O0", "-g1", "-fopenmp", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None or not sys.platform.startswith("linux"), reason="needs g++ on Linux"),
]


def instructions() -> dict[str, list[str]]:
    """The compiler's flags for each instruction set."""
    spec = util.spec_from_file_location("build_native", CSRC / "build_native.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.INSTRUCTIONS)


def runs_here(flags: list[str]) -> bool:
    if not flags:
        return True
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return {flag.removeprefix("-m") for flag in flags} <= set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The compiler's processes, side by side; each writes a program of its name."""
    folder = tmp_path_factory.mktemp("sanitized")
    running = {
        name: subprocess.Popen(
            [str(COMPILER), *FLAGS, *flags, str(CSRC / "tests" / "sanitize.cpp"), "-o", str(folder / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, flags in instructions().items()
        if runs_here(flags)
    }
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["_portable", "_avx2", "_avx512"])
def test_no_call_reads_or_writes_what_it_must_not(name: str, builds: dict[str, subprocess.Popen[str]]) -> None:
    if name not in builds:
        pytest.skip(f"this processor does not run {name}")
    process = builds[name]
    output, _ = process.communicate()
    assert process.returncode == 0, output
    # The search for leaks fails where processes may not look at each other, as in some containers.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    program = str(process.args[-1])  # type: ignore[index]
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "pieces: 100 calls"
