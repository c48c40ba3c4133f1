"""`sparsify tune`: a keep rate for each module, where it costs least, and the verdict on data that tuning never saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SparsifyError, UsageError
from ..evaluation.prompts import read_template
from ..evaluation.run import Lost
from ..evaluation.sources import is_path, load_items, not_judged
from ..evaluation.tasks import Task, TaskOptions, task_for
from ..evaluation.verdict.gate import Verdict
from ..evaluation.verdict.sequence import fixed_sequences
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods import Method
from ..patcher.plan import plan_model
from ..patcher.preset import dense_by_default
from ..patcher.recipe import check_writable, is_recipe, save_recipe
from ..processes import Processes
from ..tuning.ladder import TUNED, Cell, grid_for, make_ladder
from ..tuning.sensitivity import SensitivityMap, measure
from ..tuning.sensitivity_file import SENSITIVITY_FILE, save_sensitivity, stored_map
from .evaluate import GATE_FAILED, NO_CONCLUSION, Outcome, evaluate_targets
from .target import Target
from .tune_cells import Measuring, choose, make_calibrator
from .tune_keys import map_key, run_key
from .tune_options import TuneData, TuneOptions
from .tune_record import TUNE_FILE, Candidate, TuneRecord
from .tune_result import write_recommended

DEFAULT_DIRECTORY = "sparsified-tuned"
INSIDE = "tune"  # where all but the recommended recipe is
RECIPES = "recipes"
MAP_PASSES = 5  # what the map costs, in passes over an item
VARIANTS = 3  # cells that are measured for each rung, at most: two tuned, one uniform


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


def check_names(model: str, dataset: str, options: TuneOptions) -> None:
    """UsageError for what is wrong before anything is loaded. dataset: as typed, or the default one."""
    if is_recipe(model):
        raise UsageError(f"{model} is a recipe: name its MODEL, whose modules get a keep rate each")
    if options.calibrate_on is None and is_path(dataset):
        raise UsageError(
            f"tuning looks at the train split, and the file {dataset} has none: name other data with --calibrate-on"
        )


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


def passes(options: TuneOptions, data: TuneData, processes: Processes) -> int:
    """About how many passes over an item all steps together take, as if the map were shared too."""
    samples, rungs = len(data.tuning), len(options.keeps)
    asked = min(options.asking.limit or len(data.evaluation), len(data.evaluation))
    shared = samples * (options.calibrates + 1 + VARIANTS * rungs) + asked * 2 * rungs
    return samples * MAP_PASSES * processes.count + shared


@dataclass(frozen=True)
class Tuning:
    """One tuning of a loaded model. directory: of the recipe. All but the map, which the first process measures, is
    shared by the processes."""

    loaded: LoadedModel
    data: TuneData
    options: TuneOptions
    directory: Path
    command: str | None = None
    steps: Steps = field(default_factory=Steps)
    processes: Processes = field(default_factory=Processes)

    @property
    def inside(self) -> Path:
        """Where all but the recommended recipe is."""
        return self.directory / INSIDE

    def run(self, *, force: bool = False) -> Tuned:
        """Measures, allocates and judges; writes everything below the directory and, if an allocation passes, its
        recipe. On all processes but the first the record ends before the verdicts.

        What the same tuning did before is taken from there. Raises what planning, measuring and evaluating raise;
        UsageError for a directory with another tuning, unless forced.
        """
        options, asking, tuning = self.options, self.options.asking, self.data.tuning
        template = read_template(asking.prompt_template) if asking.prompt_template else None
        task = task_for(self.loaded, tuning, TaskOptions(asking.batch_size, asking.max_new_tokens, template))
        task.check()
        plan, uniform = candidate_plan(self.loaded, options)
        read = [task.calibration_inputs(item) for item in tuning.items]
        key = map_key(self.loaded, task, plan, options, read)
        record = TuneRecord.start(
            self.inside,
            self.loaded,
            self.data,
            options,
            key=run_key(key, uniform, self.data, options),
            command=self.command,
            force=force,
            processes=self.processes,
        )
        found = self._map(plan, read, key)
        tuned, ladder = make_ladder(found, options.goal, options.keeps, uniform)
        candidates = self._candidates(plan, tuned, ladder, task, record)
        record.plan(candidates)
        outcomes = self._judge(candidates)
        if self.processes.is_main:
            record.finish(candidates, outcomes, found)
            recipes = {one.cell.name: one.recipe for one in candidates}
            # Before the record says that all has ended: whoever reads that may trust the recipe.
            write_recommended(self.directory, self.inside, record.content, recipes)
            record.write()
        return Tuned(record.content, found, self.directory)

    def _map(self, plan: dict[str, Method], read: list[list[dict[str, Tensor]]], key: str) -> SensitivityMap:
        """The map, measured or from the file of an earlier run. One process draws all outcomes and takes all times, so
        that the map is the same however many there are."""
        found = None
        with self.processes.together():
            if self.processes.is_main:
                found = self._measured(plan, read, key)
        made: SensitivityMap = self.processes.gather(found)[0]
        return made

    def _measured(self, plan: dict[str, Method], read: list[list[dict[str, Tensor]]], key: str) -> SensitivityMap:
        path, steps = self.inside / SENSITIVITY_FILE, self.steps
        if (stored := stored_map(path, key)) is not None:
            steps.tell(f"the sensitivity map is there already: {path}")
            steps.advance(MAP_PASSES * len(read))
            return stored

        def each() -> Iterator[list[dict[str, Tensor]]]:
            for inputs in read:
                yield inputs
                steps.advance(MAP_PASSES)

        how: dict[str, Any] = {"decoding": self.options.goal == "v-rows", "timed": self.options.goal == "latency"}
        grid, seed = grid_for(self.options.keeps), self.options.asking.seed
        found = measure(self.loaded.model, plan, grid, each(), **how, seed=seed, tell=steps.tell)
        save_sensitivity(found, path, key=key, dataset=self.data.tuning.describe())
        return found

    def _candidates(
        self, plan: dict[str, Method], tuned: list[list[Cell]], ladder: list[Cell], task: Task, record: TuneRecord
    ) -> list[Candidate]:
        """The tuned chain, one cell a budget, and then the uniform one. What tuning data say is settled here."""
        calibrator = None
        if self.options.calibrates:
            calibrator = make_calibrator(self.loaded, plan, self.data.tuning, self.options, record, self.steps.tell)
            calibrator.calibrate(self.steps.advance)
            calibrator.write()
        measuring = Measuring(self.loaded, plan, task, calibrator, record, self.steps.advance)
        made = iter(measuring.candidates([*(cell for variants in tuned for cell in variants), *ladder]))
        return [*choose([[next(made) for _ in variants] for variants in tuned]), *made]

    def _judge(self, candidates: list[Candidate]) -> list[Outcome | str]:
        """All cells on the evaluation data in one pass, each chain in its fixed sequence at the full level; for one
        that fails the reason, and the sequence goes on without it; empty on all processes but the first. SparsifyError
        if all of them fail."""
        places = [self.inside / RECIPES / one.cell.name for one in candidates]
        with self.processes.together():
            for one, place in zip(candidates, places, strict=True):
                if self.processes.is_main:
                    save_recipe(one.recipe, place, force=True)
        targets = [Target(self.loaded, one.recipe, place) for one, place in zip(candidates, places, strict=True)]
        lost: Lost = {}

        def corrected(verdicts: list[Verdict]) -> list[Verdict]:
            count = sum(one.is_tuned for place, one in enumerate(candidates) if place not in lost)
            return [*fixed_sequences([verdicts[:count]])[0], *fixed_sequences([verdicts[count:]])[0]]

        outcomes = evaluate_targets(
            targets,
            self.data.evaluation,
            self.options.asking,
            processes=self.processes,
            command=self.command,
            advance=self.steps.advance,
            correct=corrected,
            lost=lost,
        )
        if len(lost) == len(candidates):
            raise SparsifyError(f"no candidate could be run: {next(iter(lost.values()))}")
        if not self.processes.is_main:
            return []
        done = iter(outcomes)
        return [lost[place] if place in lost else next(done) for place in range(len(candidates))]


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
