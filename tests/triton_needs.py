"""What Triton kernels need on a GPU that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MOST_SHARED = 99 * 1024  # bytes a program may have on an RTX 3090 or 4090


def built(calls: str, capability: int) -> list[dict[str, Any]]:
    """What triton_builds.py prints of the kernels that a module of calls launches. Each fits a common GPU's memory."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("triton_builds.py"), str(capability), calls],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for needs in found:
        assert needs["shared"] <= MOST_SHARED, needs
    return found
