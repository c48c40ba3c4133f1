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
        "_sum_rows": 2,
        "_covariance": 1,
        "_project": 1,
        "_nearest": 2,
        "_means": 1,
        "_mean_queries": 1,
        "_attend": 2,
        "_settle": 2,
        "_refine": 3,
    }
    for kernel in kernels:
        assert kernel["shared"] <= SHARED, kernel
        assert kernel["spilled"] <= SPILLED, kernel
