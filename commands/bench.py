"""`sparsify bench`: what patched and dense cost in time and memory at some lengths, side by side."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..benchmark.arms import Arms
from ..benchmark.plot import plot_ratios
from ..benchmark.run import LengthResult, measure, summary, with_min_length
from ..benchmark.text import documentation, texts_of, tokens_of
from ..benchmark.workload import GENERATING
from ..errors import NotPatchableError, UsageError, require_at_least_one
from ..evaluation.inputs import position_limit
from ..evaluation.items import ItemSet
from ..files import cannot_write, write_file
from ..patcher.binding.loading import LoadedModel, LoadOptions
from ..patcher.binding.modules import interception_of
from ..patcher.binding.tasks import WITHOUT_TEXT
from ..patcher.methods import TopKFeedForward
from ..patcher.recipe import Recipe, check_place, save_recipe
from .bench_process import Job
from .target import Target, describe_target

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# A machine with so much work per core before we begin is no place to take times.
BUSY = 0.75
RESULTS, PLOT = "bench.json", "ratio.png"
DEFAULT_LENGTHS = (512, 2048, 8192)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. lengths: None for the default ones that the model has positions for. write: put the break-even
    into the recipe. UsageError for what is wrong whatever the model is."""

    lengths: tuple[int, ...] | None = None
    new_tokens: int = 64
    batch_size: int = 1
    repeats: int = 5
    eager: bool = True
    memory: bool = True
    write: bool = False

    def __post_init__(self) -> None:
        require_at_least_one(batch_size=self.batch_size, repeats=self.repeats)
        if self.new_tokens < 0:
            raise UsageError(f"--new-tokens must be at least 0, not {self.new_tokens}")


@dataclass(frozen=True)
class Bench:
    """results: the content of bench.json. directory: where it is. plotted: whether there was a library for it. written:
    the recipe's new min_length, None if it was not written; why_not: the reason, where it was wanted."""

    results: dict[str, Any]
    directory: Path
    plotted: bool
    written: int | None = None
    why_not: str | None = None


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """ "512,2k" -> (512, 2048), ascending. UsageError for anything else."""
    if text is None:
        return None
    lengths = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(k?)", part.strip().lower())
        if match is None or not int(match[1]):
            raise UsageError(f"--lengths: {part.strip()!r} is no length; write numbers such as 512,2k,8k")
        lengths.add(int(match[1]) * (1024 if match[2] else 1))
    return tuple(sorted(lengths))


def make_options(lengths: str | None = None, **others: Any) -> BenchOptions:
    """The options with lengths as they are typed. Raises what BenchOptions and parse_lengths raise."""
    return BenchOptions(parse_lengths(lengths), **others)


def require_text(loaded: LoadedModel) -> None:
    """UsageError for a model that does not read text alone."""
    if loaded.base.task in WITHOUT_TEXT:
        raise UsageError(
            f"{loaded.base.id} ({loaded.base.task}) does not read text alone, which is what bench measures on"
        )


def check_target(target: Target, options: BenchOptions) -> tuple[int, ...]:
    """The lengths to measure. UsageError for one that the model has no positions for or that new tokens fill, for a
    model that does not read text alone, and for --write where there is nothing to write to. NotPatchableError for
    intercepted modules: they compute all scores and run Python beside, so that their times say nothing of the method.
    """
    if intercepted := interception_of(target.loaded.model, target.recipe.plan):
        raise NotPatchableError(f"nothing to time: {intercepted['note']}; leave them dense (patch --set NAME=none)")
    if options.write:
        _check_write(target)
    loaded = target.loaded
    require_text(loaded)
    limit = position_limit(loaded.model)
    least = 1 + (options.new_tokens if loaded.base.task == "causal-lm" else 0)
    if options.lengths is None:
        lengths = tuple(length for length in DEFAULT_LENGTHS if limit is None or length <= limit) or (limit or 0,)
    else:
        lengths = options.lengths
    if limit is not None and lengths[-1] > limit:
        raise UsageError(f"--lengths: {lengths[-1]} is more than the {limit} positions of {loaded.base.id}")
    if lengths[0] < least:
        raise UsageError(
            f"--lengths: {lengths[0]} tokens leave no prompt before {options.new_tokens} new ones: lower --new-tokens"
        )
    return lengths


def _check_write(target: Target) -> None:
    """UsageError where --write has nothing to write to."""
    if target.directory is None:
        raise UsageError("--write goes with a recipe here: make one with `sparsify patch MODEL`")
    if all(isinstance(method, TopKFeedForward) for method in target.recipe.plan.values()):
        raise UsageError("--write says below which length attention stays dense, and this recipe patches no attention")


def check_output(output: Path | None) -> None:
    """Before anything is loaded: UsageError for a place that holds results, SparsifyError for one that takes none."""
    if output is not None:
        check_place(output, "results")
        if (output / RESULTS).exists():
            raise UsageError(f"{output} holds results already: give -o another directory")


def passes(options: BenchOptions, lengths: tuple[int, ...], arms: Arms) -> int:
    """How many passes there are to show progress of."""
    return len(lengths) * len(arms.names) * (options.repeats + int(options.memory))


def input_tokens(target: Target, items: ItemSet | None, options: BenchOptions, longest: int) -> Tensor:
    """int64 [batch, longest] of the items' texts, or of Python's documentation."""
    texts = documentation() if items is None else texts_of(items)
    return tokens_of(target.loaded.tokenizer, texts, options.batch_size, longest)


def recipe_to_measure(target: Target, options: BenchOptions) -> Recipe:
    """The target's; with --write without a length below which it is dense, so that the break-even can be found."""
    return with_min_length(target.recipe, 0) if options.write else target.recipe


def bench(
    target: Target,
    arms: Arms,
    options: BenchOptions,
    lengths: tuple[int, ...],
    tokens: Tensor,
    *,
    job: Job,
    advance: Callable[[int], None],
) -> list[LengthResult]:
    """Measures all lengths. job: for the processes that measure memory."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        logger.warning("warning: the machine is busy (load %.1f on %d cores): times will scatter", load, cores)
    planned = set(target.recipe.plan)
    results = [
        measure(target.loaded, arms, tokens[:, :length], options.new_tokens, options.repeats, planned, advance)
        for length in lengths
    ]
    for arm in arms.names if options.memory else ():
        taken = [result.work.tokens.shape[1] for result in results if arm not in result.left_out]
        peaks = job.run(arm, taken) if taken else {}
        for result in results:
            result.peak_memory[arm] = peaks.get(result.work.tokens.shape[1])
        advance(len(lengths))
    return results


def finish(
    target: Target,
    options: BenchOptions,
    measured: list[LengthResult],
    *,
    text: str,
    command: str,
    output: Path | None,
) -> Bench:
    """Writes bench.json, the plot and, if asked for, the recipe's min_length. text: what was read."""
    loaded = target.loaded
    results = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "model": Path(target.recipe.base_model.id).name,
        **describe_target(target, target.recipe),
        "threads": torch.get_num_threads(),
        "dense": str(loaded.model.config._attn_implementation),
        "text": text,
        "batch_size": options.batch_size,
        "new_tokens": options.new_tokens if loaded.base.task in GENERATING else 0,
        "repeats": options.repeats,
        **summary(measured),
    }
    directory = output or _place(target)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        plotted = plot_ratios(results, directory / PLOT)
        # Last: a directory with results is not written again.
        write_file(directory / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    except OSError as error:
        raise cannot_write("results", directory, error) from None
    written, why_not = _write(target, results["break_even"]) if options.write else (None, None)
    return Bench(results, directory, plotted, written, why_not)


def _write(target: Target, evens: dict[str, float | None]) -> tuple[int | None, str | None]:
    """The length that was written, or None and why not."""
    if slow := [phase for phase, even in evens.items() if even is None]:
        return None, f"{' and '.join(slow)} broke even at no length that was measured"
    least = math.ceil(max(even for even in evens.values() if even is not None))
    if target.directory is not None:
        save_recipe(with_min_length(target.recipe, least), target.directory, force=True)
    return least, None


def _place(target: Target) -> Path:
    """RECIPE/bench/DATE-TIME."""
    parent = target.directory / "bench" if target.directory else Path("sparsified-bench")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place, again = parent / stamp, 1
    while place.exists():
        again += 1
        place = parent / f"{stamp}-{again}"
    return place


def make_job(
    argument: str | None, model: str | None, loading: LoadOptions, tokens: Tensor, options: BenchOptions
) -> Job:
    """What the processes that measure memory are told."""
    return Job(
        target=argument,
        model=model,
        loading=asdict(loading),
        threads=torch.get_num_threads(),
        tokens=tokens.tolist(),
        new_tokens=options.new_tokens,
        min_length=0 if options.write else None,
    )


def closing_lines(done: Bench) -> list[str]:
    """What a person is told at the end."""
    lines = [f"wrote {done.directory / RESULTS}"]
    if done.plotted:
        lines[0] += f" and {PLOT}"
    else:
        lines.append("no plot without the charting libraries: pip install 'hf-sparsify[plot]'")
    if done.written is not None:
        lines.append(f"the recipe's attention now stays dense for rows of fewer than {done.written:,} keys")
    if done.why_not is not None:
        lines.append(f"the recipe stays as it was: {done.why_not}")
    return lines
