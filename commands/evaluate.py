"""`sparsify eval`: dense and patched on the same items, the verdict, and where the results go."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError, require_at_least_one
from ..evaluation.dense_cache import DenseCache, dense_key, has_offloaded_weights
from ..evaluation.distractors import with_distractors
from ..evaluation.items import ItemSet, content_hash
from ..evaluation.journal import RESULTS, RUN, SCHEMA_VERSION, Journal, ended_run, predictions_of
from ..evaluation.module_kinds import module_kinds
from ..evaluation.prompts import read_template
from ..evaluation.results import Correction, judge, prediction_lines, summarize
from ..evaluation.run import Contender, Evaluation, Lost, evaluate, fitting_items
from ..evaluation.shots import draw_shots
from ..evaluation.sources import is_path, load_items
from ..evaluation.tasks import Task, TaskOptions, task_for
from ..evaluation.verdict.gate import FAIL, INCONCLUSIVE, Gate
from ..patcher.recipe import Recipe, check_place
from ..patcher.thresholds import ModuleThresholds
from ..processes import Processes
from .target import Target, describe_target

logger = logging.getLogger(__name__)

GATE_FAILED, NO_CONCLUSION = 3, 5  # exit codes


@dataclass(frozen=True)
class EvalOptions:
    """What is asked, how, and what decides; `sparsify eval --help` explains each.

    UsageError for what is wrong whatever the model and the data are.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 8
    max_new_tokens: int | None = None
    max_input_tokens: int | None = None
    prompt_template: Path | None = None
    shots: int = 0
    shots_from: str | None = None
    distractors: int = 0
    gate: Gate = field(default_factory=Gate)
    as_top_k: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        require_at_least_one(limit=self.limit, batch_size=self.batch_size)
        require_at_least_one(max_new_tokens=self.max_new_tokens, max_input_tokens=self.max_input_tokens)
        for name in ("seed", "shots", "distractors"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} must be at least 0, not {getattr(self, name)}")
        if self.shots_from is not None and not self.shots:
            raise UsageError("--shots-from goes with --shots N")


def make_options(max_drop: float = 1.0, min_recovery: float | None = None, **others: Any) -> EvalOptions:
    """The options with the gate's two in their place. Raises what EvalOptions and Gate raise."""
    return EvalOptions(gate=Gate(max_drop, min_recovery), **others)


@dataclass(frozen=True)
class Outcome:
    """One recipe's results, the directory that they are in, and whether they were there before."""

    results: dict[str, Any]
    directory: Path
    was_there: bool


def check_output(output: Path | None, targets: Sequence[str]) -> None:
    """UsageError if the results have no place where they are to go; SparsifyError if they cannot be written there."""
    places = [os.path.realpath(target) for target in targets]
    if twice := [target for target, place in zip(targets, places, strict=True) if places.count(place) > 1]:
        raise UsageError(f"{twice[-1]} is given twice")
    if output is not None and len(targets) > 1:
        raise UsageError("-o names one directory, and every recipe has results of its own: leave it out")
    if output is not None:
        _check_free(output)


def make_task(target: Target, items: ItemSet, options: EvalOptions) -> Task:
    """The task on the items that the options choose, with distractors, template and examples."""
    chosen = with_distractors(items.sample(options.limit, options.seed), options.distractors, options.seed, pool=items)
    template = read_template(options.prompt_template) if options.prompt_template else None
    shots = draw_shots(_shots_source(items, options), options.shots, options.seed, items) if options.shots else ()
    return task_for(
        target.loaded,
        chosen,
        TaskOptions(options.batch_size, options.max_new_tokens, template, shots, options.max_input_tokens),
    )


def evaluate_targets(
    targets: Sequence[Target],
    items: ItemSet,
    options: EvalOptions,
    *,
    output: Path | None = None,
    processes: Processes | None = None,
    command: str | None = None,
    advance: Callable[[int], None] | None = None,
    correct: Correction | None = None,
    lost: Lost | None = None,
) -> list[Outcome]:
    """Evaluates recipes for one model, writes results.json and predictions.jsonl for each, returns them.

    output: the directory to write (one recipe); by default RECIPE/eval/RUN, or ./sparsified-eval/RUN for a bare model.
    RUN follows from all that changes answers, so the same command goes on where it was stopped, and one that has ended
    is judged anew without running the model. On all processes but the first the outcomes are empty.
    advance: called with the number of items that recipes have done. correct: of several verdicts, see judge. lost: if
    given, a recipe that fails is put there and has no outcome, as in evaluation.run.evaluate.
    """
    processes = processes or Processes()
    loaded, recipes = targets[0].loaded, [chosen_recipe(target, options) for target in targets]
    task = make_task(targets[0], items, options)
    fitting = fitting_items(task)  # refuses what cannot be asked before anything is written
    key = dense_key(loaded, task)
    inputs = [task.read(item)[0] for item in fitting]
    runs = [run_key(key, recipe, task, inputs) for recipe in recipes]
    places = [output or _place(target, task, run) for target, run in zip(targets, runs, strict=True)]
    if processes.is_main:
        # Recipes of one calibration are told of once.
        for recipe in {recipe.calibration.items: recipe for recipe in recipes if recipe.calibration}.values():
            warn_of_seen(recipe, task)
    journals: list[Journal] = []
    try:
        for place, run in zip(places, runs, strict=True):
            journals.append(_journal(place, run, processes, options))
        contenders = [Contender(r.plan, r.thresholds, journal) for r, journal in zip(recipes, journals, strict=True)]
        usable = options.cache and not has_offloaded_weights(loaded)
        cache = DenseCache(key, run=" ".join(sorted(runs))) if usable else None
        evaluations = evaluate(loaded, contenders, task, cache=cache, processes=processes, advance=advance, lost=lost)
        if not processes.is_main:
            return []
        whole = [place for place in range(len(targets)) if place not in (lost or {})]
        chosen, patched = [targets[index] for index in whole], [recipes[index] for index in whole]
        all_results = describe(chosen, patched, evaluations, options, correct)
        outcomes = []
        for index, evaluation, results in zip(whole, evaluations, all_results, strict=True):
            results = {"run_id": places[index].name, "run": runs[index], "command": command, **results}
            results = evaluation.journal.finish(prediction_lines(evaluation), results)
            outcomes.append(Outcome(results, places[index], evaluation.journal.ended is not None))
        return outcomes
    finally:
        for journal in journals:
            journal.close()


def describe(
    targets: Sequence[Target],
    recipes: Sequence[Recipe],
    evaluations: Sequence[Evaluation],
    options: EvalOptions,
    correct: Correction | None = None,
) -> list[dict[str, Any]]:
    """The results of each evaluation with all that is needed to tell what was run. correct: see judge."""
    verdicts = judge(evaluations, options.gate, options.seed, correct)
    described = []
    for target, recipe, evaluation, verdict in zip(targets, recipes, evaluations, verdicts, strict=True):
        task = evaluation.task
        calibration = recipe.to_dict()["calibration"]
        described.append(
            {
                "schema_version": SCHEMA_VERSION,
                **describe_target(target, recipe),
                "module_kinds": module_kinds(target.loaded.model, recipe.plan),
                "calibration": calibration and {key: value for key, value in calibration.items() if key != "items"},
                "seen_in_calibration": len(_seen(recipe, task)),
                "seed": options.seed,
                "limit": options.limit,
                "shots": [shot.id for shot in task.options.shots],
                "template": task.options.template,
                "max_input_tokens": options.max_input_tokens,
                "distractors": options.distractors,
                **summarize(evaluation, verdict, options.seed),
            }
        )
    return described


def as_plain(outcomes: Sequence[Outcome]) -> Any:
    """The results for JSON: those of one recipe, or a list of those of several."""
    results = [outcome.results for outcome in outcomes]
    return results[0] if len(results) == 1 else results


def exit_code(outcomes: Sequence[Outcome], *, require_conclusion: bool) -> int:
    """0, GATE_FAILED if any recipe fails, NO_CONCLUSION if one is inconclusive and a conclusion was required."""
    decisions = {outcome.results["verdict"]["decision"] for outcome in outcomes}
    if FAIL in decisions:
        return GATE_FAILED
    return NO_CONCLUSION if require_conclusion and INCONCLUSIVE in decisions else 0


def chosen_recipe(target: Target, options: EvalOptions) -> Recipe:
    """A target's recipe, or the one from before its calibration."""
    return target.recipe.as_top_k() if options.as_top_k else target.recipe


def _shots_source(items: ItemSet, options: EvalOptions) -> ItemSet:
    if options.shots_from is not None:
        return load_items(options.shots_from, default_split="train")
    if not items.split or is_path(items.name):
        raise UsageError(
            f"--shots draws examples from the train split, and the file {items.name} has none: name another file or "
            "data set with --shots-from"
        )
    return load_items(items.name, "train")


def _journal(directory: Path, run: str, processes: Processes, options: EvalOptions) -> Journal:
    """What is there of the run; UsageError if the directory holds anything else."""
    results = ended_run(directory)
    if results is None:
        _check_free(directory)
    elif results.get("run") != run:
        raise _taken(directory)
    elif options.cache and predictions_of(directory, results):
        return Journal.of_ended(directory, results)
    # One that has not ended goes on, also without the cache: it is the same run.
    return Journal.open(directory, run, processes, anew=results is not None)


def _check_free(directory: Path) -> None:
    """Free is what does not exist, is empty, or holds a run; whether it is this one shows later."""
    check_place(directory, "results")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RUN).exists() and not ended_run(directory):
        if (directory / RESULTS).exists():
            raise UsageError(
                f"{directory} exists already, with results that were damaged or changed, or that another version "
                "wrote: move them away, or give -o another directory"
            )
        raise _taken(directory)


def _taken(directory: Path) -> UsageError:
    return UsageError(f"{directory} exists already: give -o another directory for the results")


def _place(target: Target, task: Task, run: str) -> Path:
    """RECIPE/eval/DATA-SET-RUN."""
    parent = target.directory / "eval" if target.directory else Path("sparsified-eval")
    stem = Path(task.items.name).stem if is_path(task.items.name) else task.items.name.replace("/", "-")
    return parent / f"{stem}-{run[:8]}"


def run_key(key: dict[str, Any], recipe: Recipe, task: Task, inputs: Sequence[str]) -> str:
    """64 hex digits over everything that answers follow from; gates do not belong to it.

    key: of the dense model. inputs: the hashes of what the model reads, which hold prompt, examples and distractors.
    """
    content = [
        key,
        replace(recipe, versions={}, calibration=None, before_calibration=None).to_dict(),
        {name: _numbers(table) for name, table in sorted(recipe.thresholds.items())},
        [task.items.fingerprint, [item.id for item in task.items.items], list(inputs)],
        task.batch_size,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _numbers(table: ModuleThresholds) -> list[Any]:
    """All that a table says of a row."""
    dropped = None if table.dropped is None else table.dropped.tolist()
    return [table.lengths.tolist(), table.theta.tolist(), table.shortest, table.longest, dropped]


def _seen(recipe: Recipe, task: Task) -> set[str]:
    """The items of a task that calibration has seen."""
    known = set(recipe.calibration.items) if recipe.calibration else set()
    return {item.id for item in task.items.items if content_hash(item) in known} if known else set()


def warn_of_seen(recipe: Recipe, task: Task) -> None:
    """A warning if calibration has seen items of a task."""
    seen = _seen(recipe, task)
    if seen:
        logger.warning(
            "warning: %d of these %d items were used for calibration: the verdict is about data that the thresholds "
            "have seen",
            len(seen),
            len(task.items),
        )
