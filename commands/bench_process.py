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
    """What to measure. target, model, loading: as on the command line. tokens: [B, n]. lengths, new_tokens: see
    peaks_of. min_length: in place of the recipe's."""

    target: str | None
    model: str | None
    loading: dict[str, Any]
    arm: str
    threads: int
    tokens: list[list[int]]
    lengths: Sequence[int]
    new_tokens: int
    min_length: int | None = None

    def run(self) -> dict[int, int | None]:
        """What peaks_of finds in another process. SparsifyError if that fails."""
        command = [sys.executable, "-m", __name__]
        done = subprocess.run(command, input=json.dumps(asdict(self)), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise SparsifyError(f"the memory of {self.arm} was not measured: {last} (--no-memory leaves it out)")
        return {int(length): peak for length, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def _main() -> None:
    job = Job(**json.load(sys.stdin))
    torch.set_num_threads(job.threads)
    target = open_target(job.target, LoadOptions(**job.loading), model=job.model)
    recipe = target.recipe if job.min_length is None else with_min_length(target.recipe, job.min_length)
    arms = Arms(target.loaded.model, recipe)
    print(json.dumps(peaks_of(target.loaded, arms, job.arm, torch.tensor(job.tokens), job.lengths, job.new_tokens)))


if __name__ == "__main__":
    _main()
