"""`sparsify tune`: a keep rate for each module, where it costs least, and the verdict on data that tuning never saw."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SparsifyError, UsageError
from ..evaluation.dense_cache import dense_key
from ..evaluation.items import ItemSet
from ..evaluation.prompts import read_template
from ..evaluation.run import Lost
from ..evaluation.sources import is_path, load_items, not_judged
from ..evaluation.tasks import Task, TaskOptions, task_for
from ..evaluation.verdict.gate import Verdict
from ..evaluation.verdict.sequence import fixed_sequences
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods import Method, method_to_dict
from ..patcher.plan import plan_model
from ..patcher.preset import dense_by_default
from ..patcher.recipe import check_writable, is_recipe, save_recipe
from ..tuning.ladder import TUNED, Cell, grid_for, make_ladder
from ..tuning.sensitivity import SensitivityMap, measure
from ..tuning.sensitivity_file import SENSITIVITY_FILE, save_sensitivity, stored_map
from .evaluate import GATE_FAILED, NO_CONCLUSION, Outcome, evaluate_targets
from .target import Target
from .tune_cells import CALIBRATION, calibrate_once, choose, measure_cells, recipe_of
from .tune_options import TuneOptions
from .tune_record import TUNE_FILE, Candidate, TuneRecord, describe_items, write_recommended

DEFAULT_DIRECTORY = "sparsified-tuned"
INSIDE = "tune"  # where all but the recommended recipe is
RECIPES = "recipes"
MAP_PASSES = 5  # what the map costs, in passes over an item
VARIANTS = 3  # cells that are measured for each rung, at most: two tuned, one uniform


@dataclass(frozen=True)
class TuneData:
    """What tuning looks at, and what judges it; no item is in both."""

    tuning: ItemSet
    evaluation: ItemSet


@dataclass(frozen=True)
class Steps:
    """How a tuning tells how far it is. advance: called with passes over items done; tell: with what to know."""

    advance: Callable[[int], None] = field(default=lambda _: None)
    tell: Callable[[str], None] = field(default=lambda _: None)


@dataclass(frozen=True)
class Tuned:
    """What came of it. record: the content of tune.json."""

    record: dict[str, Any]
    found: SensitivityMap
    directory: Path

    @property
    def exit_code(self) -> int:
        """0 if a recipe is recommended; else GATE_FAILED if the first allocation that was judged fails, NO_CONCLUSION
        if that cannot be told, 1 if none could be run."""
        if self.record["recommended"]:
            return 0
        judged = [cell for cell in self.record["cells"] if cell["chain"] == TUNED and cell["verdict"] is not None]
        if not judged:
            return SparsifyError.exit_code
        return GATE_FAILED if judged[0]["verdict"]["decision"] == "FAIL" else NO_CONCLUSION


def check_names(model: str, dataset: str, options: TuneOptions, processes: int) -> None:
    """UsageError for what is wrong before anything is loaded. dataset: as typed, or the default one."""
    if is_recipe(model):
        raise UsageError(f"{model} is a recipe: name its MODEL, whose modules get a keep rate each")
    if options.calibrate_on is None and is_path(dataset):
        raise UsageError(
            f"tuning looks at the train split, and the file {dataset} has none: name other data with --calibrate-on"
        )
    if processes > 1:
        raise UsageError("tune runs in one process: start it without a launcher")


def load_data(dataset: str, split: str | None, options: TuneOptions) -> TuneData:
    """What tuning looks at, drawn with the seed from what will not be evaluated, and what judges it. Raises what
    load_items raises; UsageError if nothing is left to tune on."""
    evaluation = load_items(dataset, split, default_split="validation")
    pool, asking = load_items(options.calibrate_on or dataset, None, default_split="train"), options.asking
    others = not_judged(pool, evaluation.sample(asking.limit, asking.seed), "tune")
    return TuneData(others.sample(options.samples, asking.seed), evaluation)


def check_directory(directory: Path, *, force: bool) -> None:
    """UsageError if a directory holds a recipe that is no tuned one and `force` is off; SparsifyError if it cannot be
    written."""
    check_writable(directory, force=force or os.path.isfile(directory / INSIDE / TUNE_FILE))


def passes(options: TuneOptions, data: TuneData) -> int:
    """About how many passes over an item all steps together take."""
    samples, rungs = len(data.tuning), len(options.keeps)
    asked = min(options.asking.limit or len(data.evaluation), len(data.evaluation))
    calibrating = samples * (options.attention == "top-theta")
    return samples * (MAP_PASSES + 1 + VARIANTS * rungs) + calibrating + asked * 2 * rungs


def tune(
    loaded: LoadedModel,
    data: TuneData,
    options: TuneOptions,
    directory: Path,
    *,
    force: bool = False,
    command: str | None = None,
    steps: Steps | None = None,
) -> Tuned:
    """Measures, allocates and judges; writes everything below `directory` and, if an allocation passes, its recipe.

    What the same tuning did before is taken from there. Raises what planning, measuring and evaluating raise;
    UsageError for a directory with another tuning, unless forced.
    """
    steps, asking = steps or Steps(), options.asking
    inside = directory / INSIDE
    template = read_template(asking.prompt_template) if asking.prompt_template else None
    task = task_for(loaded, data.tuning, TaskOptions(asking.batch_size, asking.max_new_tokens, template))
    task.check()
    plan, uniform = candidate_plan(loaded, options)
    read = [task.calibration_inputs(item) for item in data.tuning.items]
    key = _map_key(loaded, task, plan, options, read)
    record = TuneRecord.start(
        inside,
        loaded,
        data.tuning,
        data.evaluation,
        options,
        key=_run_key(key, uniform, data, options),
        command=command,
        force=force,
    )
    found = _mapped(loaded, plan, read, options, inside, key, data.tuning, steps)
    tuned, ladder = make_ladder(found, options.goal, options.keeps, uniform)
    candidates = _candidates(loaded, plan, tuned, ladder, task, data.tuning, options, record, steps)
    record.plan(candidates)
    outcomes = _judge(loaded, candidates, data.evaluation, options, inside, command, steps)
    record.finish(candidates, outcomes, found)
    write_recommended(directory, inside, record.content, candidates)
    return Tuned(record.content, found, directory)


def candidate_plan(loaded: LoadedModel, options: TuneOptions) -> tuple[dict[str, Method], list[str]]:
    """Every module that may become sparse, with its method, and those that a uniform keep is for: as `sparsify patch`
    takes them, without the first layers of deep models. Raises what plan_model raises."""
    attention, feed_forward = options.methods()
    selected: dict[str, Any] = {"kind": options.kind, "stack": options.stack}
    layers: dict[str, Any] = {"layers": options.layers, "skip_layers": options.skipped}
    plan = plan_model(loaded.model, attention, feed_forward, **layers, **selected)
    preset: dict[str, int] = {}
    if options.layers is None and options.skip_layers is None:
        preset = dense_by_default(loaded.model, attention, **selected)
    return plan, [name for name in plan if name not in preset]


def _mapped(
    loaded: LoadedModel,
    plan: dict[str, Method],
    read: list[list[dict[str, Tensor]]],
    options: TuneOptions,
    inside: Path,
    key: str,
    items: ItemSet,
    steps: Steps,
) -> SensitivityMap:
    """The map, measured or from the file of an earlier run."""
    path = inside / SENSITIVITY_FILE
    if (stored := stored_map(path, key)) is not None:
        steps.tell(f"the sensitivity map is there already: {path}")
        steps.advance(MAP_PASSES * len(read))
        return stored

    def each() -> Iterator[list[dict[str, Tensor]]]:
        for inputs in read:
            yield inputs
            steps.advance(MAP_PASSES)

    decoding, timed = options.goal == "v-rows", options.goal == "latency"
    grid, seed = grid_for(options.keeps), options.asking.seed
    found = measure(loaded.model, plan, grid, each(), decoding=decoding, timed=timed, seed=seed, tell=steps.tell)
    save_sensitivity(found, path, key=key, dataset=describe_items(items))
    return found


def _candidates(
    loaded: LoadedModel,
    plan: dict[str, Method],
    tuned: list[list[Cell]],
    ladder: list[Cell],
    task: Task,
    items: ItemSet,
    options: TuneOptions,
    record: TuneRecord,
    steps: Steps,
) -> list[Candidate]:
    """The tuned chain, one cell a budget, and then the uniform one. What tuning data say is settled here."""
    calibrated = None
    if options.attention == "top-theta":
        middle = options.keeps[len(options.keeps) // 2]
        directory, seed = record.directory / CALIBRATION, options.asking.seed
        calibrated = calibrate_once(loaded, plan, middle, items, seed, directory, steps.advance)
    cells = [*(cell for variants in tuned for cell in variants), *ladder]
    recipes = [recipe_of(loaded, plan, cell, calibrated) for cell in cells]
    moved = record.moved(cells)
    if moved is None:
        moved = measure_cells(loaded, recipes, task, steps.advance)
        record.keep_moved(cells, moved)
    else:
        steps.advance(len(items) * (1 + len(cells)))
    all_candidates = [Candidate(*parts) for parts in zip(cells, recipes, moved, strict=True)]
    kl_of = {id(one.cell): one.moved for one in all_candidates}
    chosen = choose([[(cell, kl_of[id(cell)]) for cell in variants] for variants in tuned])
    wanted = [*(id(cell) for cell in chosen), *(id(cell) for cell in ladder)]
    by_cell = {id(one.cell): one for one in all_candidates}
    return [by_cell[which] for which in wanted]


def _judge(
    loaded: LoadedModel,
    candidates: list[Candidate],
    items: ItemSet,
    options: TuneOptions,
    inside: Path,
    command: str | None,
    steps: Steps,
) -> list[Outcome | str]:
    """All cells on the evaluation data in one pass, each chain in its fixed sequence at the full level; for one that
    fails the reason, and the sequence goes on without it. SparsifyError if all of them do."""
    targets = []
    for one in candidates:
        place = inside / RECIPES / one.cell.name
        save_recipe(one.recipe, place, force=True)
        targets.append(Target(loaded, one.recipe, place))
    lost: Lost = {}

    def corrected(verdicts: list[Verdict]) -> list[Verdict]:
        count = sum(one.is_tuned for place, one in enumerate(candidates) if place not in lost)
        return [*fixed_sequences([verdicts[:count]])[0], *fixed_sequences([verdicts[count:]])[0]]

    outcomes = evaluate_targets(
        targets, items, options.asking, command=command, advance=steps.advance, correct=corrected, lost=lost
    )
    if not outcomes:
        raise SparsifyError(f"no candidate could be run: {next(iter(lost.values()))}")
    done = iter(outcomes)
    return [lost[place] if place in lost else next(done) for place in range(len(candidates))]


def _map_key(
    loaded: LoadedModel, task: Task, plan: dict[str, Method], options: TuneOptions, read: list[list[dict[str, Tensor]]]
) -> str:
    """64 hex digits over all that a map follows from. read: the model inputs of every item."""
    digest = hashlib.sha256()
    for one in (one for inputs in read for one in inputs):
        for name, tensor in sorted(one.items()):
            digest.update(f"{name} {tensor.tolist()}".encode())
    content = [
        dense_key(loaded, task),
        {name: method_to_dict(method) for name, method in plan.items()},
        grid_for(options.keeps),
        options.goal if options.goal != "kept" else "",
        options.asking.seed,
        digest.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _run_key(map_key: str, uniform: Iterable[str], data: TuneData, options: TuneOptions) -> str:
    """64 hex digits over all that tells one tuning from another; gates do not belong to it. uniform: the modules that
    the uniform keep is for."""
    asked = {name: value for name, value in asdict(options.asking).items() if name not in ("gate", "cache")}
    others = [options.attention, options.goal, options.keeps, sorted(uniform), data.evaluation.fingerprint, asked]
    return hashlib.sha256(json.dumps([map_key, others], sort_keys=True, default=str).encode()).hexdigest()
