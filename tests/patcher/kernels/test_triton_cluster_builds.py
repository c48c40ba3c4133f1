"""The Triton kernels of clustered attention compile for GPUs that are not there, and need no more than those have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).parents[2]
SHARED = 99 * 1024  # bytes a program may have on an RTX 3090 or 4090
SPILLED = 64  # bytes a thread
WIDE_SPILLED = 192  # of _refine with rows of 256 float32, whose tiles are the smallest that there are


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_fit_a_gpu(capability: str) -> None:
    told = subprocess.run(
        [sys.executable, TESTS / "triton_builds.py", capability, "triton_cluster_calls"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    kernels = [json.loads(line) for line in told.stdout.splitlines()]
    # Queries' and keys' rows; a sample and all points; refined, plain and dense. None is there for a length of its own.
    assert Counter(kernel["kernel"] for kernel in kernels) == {
        "_sum_rows": 4,
        "_covariance": 2,
        "_project": 2,
        "_nearest": 4,
        "_means": 2,
        "_mean_queries": 2,
        "_attend": 3,
        "_settle": 3,
        "_refine": 4,
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["spilled"] <= (WIDE_SPILLED if kernel["kernel"] == "_refine" else SPILLED), kernel
