"""A tuning that two processes share ends with the files of one that a single process did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify

ASK = (
    *("tune", "llama", "-d", "q.jsonl", "--calibrate-on", "train.jsonl", "--samples", "3", "--attention", "top-theta"),
    *("--keep", "0.5,0.2", "--batch-size", "2", "--max-new-tokens", "2", "--max-drop", "100", "--no-cache"),
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
OF_A_RUN = ("command", "environment", "key")  # what a run says of itself


def outcome(directory: str) -> dict[str, Any]:
    """All that a tuning came to, its predictions, and its recipes' thresholds."""
    place = Path(directory)
    found = json.loads((place / "tune" / "tune.json").read_text())
    made: dict[str, Any] = {key: value for key, value in found.items() if key not in OF_A_RUN}
    for name in ("*.safetensors", "predictions.jsonl", "sensitivity.json"):
        made |= {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob(name))}
    return made


@pytest.mark.slow
def test_two_processes_give_what_one_gives(sparsify: Sparsify, work: Path) -> None:
    tiny_language_models.save_questions(work / "q.jsonl", 7)
    tiny_language_models.save_questions(work / "train.jsonl", 4, people=5)
    assert sparsify(*ASK, "-o", "undisturbed").code == 0
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "hf_sparsify.cli", *ASK, "-o", "shared"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recommended: ") == 1, "one process prints"
    assert outcome("shared") == outcome("undisturbed")
    results = next(Path("shared").rglob("results.json"))
    assert json.loads(results.read_text())["processes"]["count"] == 2
    assert not [path for path in Path("shared").rglob("*") if path.name in ("run.json", "batches.jsonl")]
