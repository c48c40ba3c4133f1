"""What the scripts on top-theta share: prompts of a wanted length, and how far patched models are from the dense one.

Teacher-forced: one pass over a prompt with its gold answer, dense and with every contender, nothing generated. Figures
are of the last tokens of each prompt, where rows are longest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from hf_sparsify import LoadedModel, LoadOptions, Meter, UsageError
from hf_sparsify.calibration.options import CalibrationOptions
from hf_sparsify.calibration.run import fit_plan, fitted_plan, start
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.distractors import with_distractors
from hf_sparsify.evaluation.generation import kl_divergence
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import task_for
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.meter import ModuleMeter
from hf_sparsify.patcher.methods import Chunk, Method
from hf_sparsify.patcher.methods.chunk import Observer
from hf_sparsify.patcher.thresholds import ModuleThresholds
from scipy import stats
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """A plan with its thresholds, under the name that it has in a table."""

    name: str
    plan: dict[str, Method]
    thresholds: dict[str, ModuleThresholds] = field(default_factory=dict)


@dataclass
class Outcome:
    """Of one contender: KL in nats per token and agreement of the likeliest token in percent, for each prompt."""

    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    meter: ModuleMeter = field(default_factory=ModuleMeter)

    def spread(self) -> str:
        """'92.1 +- 0.6': mean agreement and its standard error over prompts."""
        error = stats.sem(self.agreement) if len(self.agreement) > 1 else float("nan")
        return f"{statistics.mean(self.agreement):.1f} +- {error:.1f}"


def prompts(loaded: LoadedModel, data: str, count: int, distractors: int = 0, seed: int = 0) -> list[Inputs]:
    """So many inputs of a data set, each question's passage among so many others, with the gold answer."""
    items = load_items(data)
    chosen = with_distractors(items.sample(count, seed), distractors, seed, items)
    task = task_for(loaded, chosen)
    found = [inputs for item in chosen.items for inputs in task.calibration_inputs(item)]
    if not found:
        raise UsageError(f"no prompt of {data} fits the model: use fewer --distractors")
    return found


def prompt_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that say which model reads which prompts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--distractors", type=int, default=5, help="other passages in every prompt")
    parser.add_argument(
        "--calibration-distractors", type=int, help="as many in every calibration prompt (default: 1 more)"
    )
    return parser


def calibration_prompts(loaded: LoadedModel, args: argparse.Namespace) -> list[Inputs]:
    """The prompts to calibrate on; a passage longer, so that no evaluated row is outside the table."""
    more = args.distractors + 1 if args.calibration_distractors is None else args.calibration_distractors
    return prompts(loaded, args.calibration, args.samples, more)


def compare(model: Any, inputs: Inputs, contenders: Sequence[Contender], last: int) -> dict[str, Outcome]:
    """One prompt under the dense model and every contender."""
    found = {}
    with torch.inference_mode():
        dense = _log_probs(model, inputs, last)
        for contender in contenders:
            meter = Meter(last_rows_are_steps=last)
            with apply_plan(model, contender.plan, contender.thresholds) as patch, patch.metered(meter):
                patched = _log_probs(model, inputs, last)
            agreement = (dense.argmax(-1) == patched.argmax(-1)).float().mean()
            kl = kl_divergence(dense, patched).mean()
            found[contender.name] = Outcome([float(kl)], [100 * float(agreement)], meter.total())
    return found


def _log_probs(model: Any, inputs: Inputs, last: int) -> Tensor:
    logits = model(**inputs, use_cache=False, logits_to_keep=last).logits[0]
    return logits.float().log_softmax(-1)


def calibrated(
    loaded: LoadedModel, plan: dict[str, Method], samples: Sequence[Inputs], placements: Sequence[str]
) -> dict[str, Contender]:
    """A top-k plan with thresholds of each placement, all counted in the same passes; see calibrate_plan."""
    fitted = {placement: fitted_plan(plan, CalibrationOptions(placement=placement)) for placement in placements}
    counted = {name: start(loaded.model, fitted[name], CalibrationOptions(placement=name)) for name in placements}
    with apply_plan(loaded.model, plan) as patch, torch.inference_mode():
        for module in patch.attention_patches:
            module.observer = _All([counted[placement].histograms[module.name] for placement in placements])
        for inputs in samples:
            loaded.model(**inputs, use_cache=False)
    options = CalibrationOptions()
    return {
        name: Contender(name, fitted[name], fit_plan(fitted[name], counted[name].histograms, options))
        for name in placements
    }


@dataclass
class _All:
    """Several observers as one."""

    observers: Sequence[Observer]

    def __call__(self, chunk: Chunk) -> None:
        for observer in self.observers:
            observer(chunk)


class Workers:
    """Processes with a copy of the model and one torch thread each, which share the work."""

    def __init__(self, model: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(model,))

    def each(self, function: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """function(loaded, *arguments) for every tuple of arguments, in order."""
        pending = [self.pool.submit(_call, function, arguments) for arguments in work]
        for future in pending:
            yield future.result()


_LOADED: list[LoadedModel] = []  # of a worker process


def _start(model: str) -> None:
    torch.set_num_threads(1)
    _LOADED.append(load_named(model, LoadOptions()))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_LOADED[0], *arguments)


def compare_all(
    workers: Workers, inputs: Sequence[Inputs], contenders: Sequence[Contender], last: int
) -> dict[str, Outcome]:
    """compare() for every prompt; Ctrl-C leaves out those that are not done yet."""
    total = {contender.name: Outcome() for contender in contenders}
    done = 0
    try:
        for outcomes in workers.each(_compare, [(one, contenders, last) for one in inputs]):
            done += 1
            for name, outcome in outcomes.items():
                total[name].kl += outcome.kl
                total[name].agreement += outcome.agreement
                total[name].meter.merge(outcome.meter)
            print(f"{done} of {len(inputs)} prompts", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        workers.pool.shutdown(wait=False, cancel_futures=True)
    print(f"{done} prompts, the last {last} tokens of each\n")
    return total


def _compare(loaded: LoadedModel, *arguments: Any) -> dict[str, Outcome]:
    return compare(loaded.model, *arguments)


def difference(outcome: Outcome, reference: Outcome) -> str:
    """'-0.4 [-1.1, +0.3]': agreement less that of a reference on the same prompts, with its 95 % interval."""
    differences = [a - b for a, b in zip(outcome.agreement, reference.agreement, strict=True)]
    mean, error = statistics.mean(differences), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, error) if error > 0 else (mean, mean)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
