"""A process of its own for one contender's memory: `python -m hf_sparsify.commands.bench_process`, JSON in and out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..benchmark.arms import Arms
from ..benchmark.memory import peaks_of
from ..benchmark.run import with_min_length
from ..errors import SparsifyError
from ..patcher.binding.loading import LoadOptions
from .target import open_target


@dataclass(frozen=True)
class Job:
    """What all contenders share. target, model, loading: as on the command line. tokens: [B, n]. new_tokens: see
    peaks_of. min_length: in place of the recipe's."""

    target: str | None
    model: str | None
    loading: dict[str, Any]
    threads: int
    tokens: list[list[int]]
    new_tokens: int
    min_length: int | None = None

    def run(self, arm: str, lengths: Sequence[int]) -> dict[int, int | None]:
        """What peaks_of finds for a contender in another process. SparsifyError if that fails."""
        command = [sys.executable, "-m", __name__]
        asked = json.dumps({"arm": arm, "lengths": lengths, "job": asdict(self)})
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise SparsifyError(f"the memory of {arm} was not measured: {last} (--no-memory leaves it out)")
        return {int(length): peak for length, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def _main() -> None:
    asked = json.load(sys.stdin)
    job = Job(**asked["job"])
    torch.set_num_threads(job.threads)
    target = open_target(job.target, LoadOptions(**job.loading), model=job.model)
    recipe = target.recipe if job.min_length is None else with_min_length(target.recipe, job.min_length)
    arms = Arms(target.loaded.model, recipe)
    tokens = torch.tensor(job.tokens)
    print(json.dumps(peaks_of(target.loaded, arms, asked["arm"], tokens, asked["lengths"], job.new_tokens)))


if __name__ == "__main__":
    _main()
