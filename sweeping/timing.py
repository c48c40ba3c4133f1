"""Timing a cell of a sweep, as `sparsify bench` does, each beside the dense model of its own minute."""

from __future__ import annotations

import json
from pathlib import Path

from ..benchmark.arms import Arms
from ..commands import bench
from ..commands.target import Target
from ..errors import FAILURES, one_sentence
from ..files import below
from ..patcher.binding.loading import LoadOptions

TEXT = "the Python documentation"


def time_cell(target: Target, options: bench.BenchOptions, command: str) -> tuple[Path | None, str | None]:
    """Where bench.json is, or why there is none. SparsifyError if it cannot be written."""
    try:
        lengths = bench.check_target(target, options)
        tokens = bench.input_tokens(target, None, options, lengths[-1])
        arms = Arms(target.loaded.model, target.recipe, eager=options.eager)
        job = bench.make_job(target.name, None, LoadOptions(), tokens, options)
        measured = bench.bench(target, arms, options, lengths, tokens, job=job, advance=lambda _: None)
    except FAILURES as error:
        return None, one_sentence(error)
    done = bench.finish(target, options, measured, text=TEXT, command=command, output=None)
    return done.directory / bench.RESULTS, None


def same_lengths(directory: Path, name: str, options: bench.BenchOptions | None) -> bool:
    """Whether a file inside a directory holds times of the lengths that are asked for, if any are."""
    try:
        file = below(directory, name)
        found = [entry["tokens"] for entry in json.loads(file.read_text(encoding="utf-8"))["lengths"]]
        ratios(file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return options is None or options.lengths is None or list(options.lengths) == found


def ratios(file: Path) -> dict[str, float]:
    """Dense time / patched time in each phase, at the greatest length of a bench.json."""
    longest = json.loads(file.read_text(encoding="utf-8"))["lengths"][-1]
    return {phase: float(found["ratio"]["median"]) for phase, found in longest["phases"].items()}
