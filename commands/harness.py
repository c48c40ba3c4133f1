"""`sparsify eval --harness`: tasks of lm-evaluation-harness in place of a data set, with the same verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from ..evaluation.dense_cache import dense_key
from ..evaluation.harness import Harness
from ..evaluation.journal import RUN, ended_run
from ..evaluation.results import prediction_lines
from ..evaluation.run import Contender
from ..files import cannot_write
from .evaluate import EvalOptions, Outcome, check_output, chosen_recipe, describe, run_key
from .target import Target

# Options that say how our own data sets are asked: field of EvalOptions -> name on the command line.
OF_OUR_DATA_SETS = {
    "max_new_tokens": "--max-new-tokens",
    "max_input_tokens": "--max-input-tokens",
    "prompt_template": "--prompt-template",
    "shots_from": "--shots-from",
    "distractors": "--distractors",
}


def open_harness(
    names: str,
    options: EvalOptions,
    *,
    dataset: str | None = None,
    split: str | None = None,
    task: str | None = None,
    trusted: bool = False,
) -> Harness:
    """The tasks of `--harness`. UsageError for options that do not go with it; else raises what Harness.open raises.

    trusted: code that comes with tasks may run.
    """
    given = {"--dataset": dataset is not None, "--split": split is not None, "--task": task is not None}
    given |= {name: getattr(options, field) != getattr(EvalOptions, field) for field, name in OF_OUR_DATA_SETS.items()}
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} does not go with --harness: a task says itself what is asked, and how")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--harness runs in one process: start it without torchrun or accelerate launch")
    return Harness.open(names, shots=options.shots, limit=options.limit, seed=options.seed, trusted=trusted)


def evaluate_harness(
    targets: Sequence[Target],
    harness: Harness,
    options: EvalOptions,
    *,
    output: Path | None = None,
    command: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Evaluates recipes for one model on every task; writes results.json and predictions.jsonl for each pair.

    output: the directory to write (one recipe, one task); by default RECIPE/eval/harness-TASK-RUN, or
    ./sparsified-eval/harness-TASK-RUN for a bare model. Nothing is kept of a run that was stopped; one that has ended
    is run again and replaced.
    """
    if output is not None and len(harness.tasks) > 1:
        raise UsageError("-o names one directory, and every task has results of its own: leave it out")
    loaded, recipes = targets[0].loaded, [chosen_recipe(target, options) for target in targets]
    places, runs = [], []
    for asked in harness.tasks:
        task = harness.task_for(loaded, asked, options.batch_size)
        key = dense_key(loaded, task)
        for target, recipe in zip(targets, recipes, strict=True):
            # The harness makes the prompts itself; this is what they follow from.
            runs.append(run_key(key, recipe, task, [str((options.seed, options.shots, options.limit))]))
            places.append(output or _place(target, asked.name, runs[-1]))
            _check_place(places[-1], runs[-1])
    contenders = [Contender(recipe.plan, recipe.thresholds) for recipe in recipes]
    by_task = harness.evaluate(loaded, contenders, batch_size=options.batch_size, advance=advance)
    evaluations = [evaluation for of_task in by_task for evaluation in of_task]
    many = len(harness.tasks)
    outcomes = []
    described = describe([*targets] * many, recipes * many, evaluations, options)
    for evaluation, results, place, run in zip(evaluations, described, places, runs, strict=True):
        results = {"run_id": place.name, "run": run, "command": command, **results}
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write("results", place, error) from None
        results = replace(evaluation.journal, directory=place).finish(prediction_lines(evaluation), results)
        outcomes.append(Outcome(results, place, was_there=False))
    return outcomes


def _place(target: Target, task: str, run: str) -> Path:
    """RECIPE/eval/harness-TASK-RUN."""
    parent = target.directory / "eval" if target.directory else Path("sparsified-eval")
    return parent / f"harness-{task.replace('/', '-')}-{run[:8]}"


def _check_place(directory: Path, run: str) -> None:
    """UsageError if a directory holds anything but an earlier run of the same."""
    results = ended_run(directory)
    if (directory / RUN).exists() or (results is not None and results.get("run") != run):
        raise UsageError(f"{directory} exists already: give -o another directory for the results")
    check_output(directory, ())
