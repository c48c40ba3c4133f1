"""`sparsify calibrate`: fit thresholds on a person's questions and update the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibration.check import measure_kept
from ..calibration.checkpoint import Checkpoint
from ..calibration.options import CalibrationOptions
from ..calibration.run import (
    Calibration,
    Histograms,
    calibrate_items,
    fitted_plan,
    require_convertible,
    start,
)
from ..environment import package_versions
from ..errors import SparsifyError, UsageError, require_at_least_one
from ..evaluation.dense_cache import dense_key, has_offloaded_weights
from ..evaluation.distractors import with_distractors
from ..evaluation.items import Item, ItemSet, content_hash
from ..evaluation.tasks import Task, task_for
from ..patcher.binding.modules import interception_of
from ..patcher.meter import Meter
from ..patcher.methods import Method, TopK, TopTheta, method_to_dict
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.methods.compensation import check_compensation
from ..patcher.methods.top_theta import denominator_for
from ..patcher.recipe import DEFAULT_RECIPE, CalibrationRecord, Recipe, is_recipe, load_recipe
from ..patcher.weights import weights_fingerprint
from ..processes import Processes
from .patch import check_exclusive, warn_of_lost_mass
from .target import DEFAULT_METHOD, Target

# Items that the thresholds are tried on afterwards.
CHECKED = 8


@dataclass(frozen=True)
class CalibrateOptions:
    """What is calibrated on, and how; `sparsify calibrate --help` explains each. None leaves what the recipe has.

    UsageError for what is wrong whatever the model and the data are.
    """

    samples: int = 128
    seed: int = 0
    k: int | None = None
    keep: float | None = None
    compensation: str | None = None
    distractors: int = 0
    how: CalibrationOptions = field(default_factory=CalibrationOptions)

    def __post_init__(self) -> None:
        require_at_least_one(samples=self.samples)
        check_exclusive(self.k, self.keep)
        if self.k is not None or self.keep is not None:
            Budget(k=self.k, keep=self.keep)
        if self.compensation is not None:
            check_compensation(self.compensation, "visible")
        if self.distractors < 0:
            raise UsageError(f"--distractors must be at least 0, not {self.distractors}")

    def applied(self, plan: dict[str, Method]) -> dict[str, Method]:
        """A plan with what is asked for; top-k stays top-k.

        All at once, because one change alone may not go with the rest of a method.
        """
        changes: dict[str, Any] = {} if self.compensation is None else {"compensation": self.compensation}
        if self.k is not None or self.keep is not None:
            changes |= {"k": self.k, "keep": self.keep}

        def changed(method: Method) -> Method:
            if isinstance(method, TopTheta):
                placement = self.how.placement or method.placement
                denominator = self.how.denominator or denominator_for(self.how.placement, method.denominator)
                return replace(method, **changes, placement=placement, denominator=denominator)
            if isinstance(method, TopK) and self.how.denominator == "exact":
                return replace(method, **changes, denominator="exact")
            return replace(method, **changes) if isinstance(method, Budget) else method

        return {name: changed(method) for name, method in plan.items()}


def make_options(
    *,
    placement: str | None = None,
    estimator: str = "count-matched",
    alpha: float = 0.0,
    activations: str = "sparse",
    denominator: str | None = None,
    **others: Any,
) -> CalibrateOptions:
    """The options with those of CalibrationOptions in their place. Raises what the two raise."""
    return CalibrateOptions(how=CalibrationOptions(placement, estimator, alpha, activations, denominator), **others)


def check_options(target: str | None, options: CalibrateOptions) -> None:
    """UsageError for options that do not go with a recipe's plan, or that of a bare MODEL, before either is opened.

    Raises what load_recipe raises.
    """
    name = DEFAULT_RECIPE if target is None else target
    _fitted(load_recipe(name).plan if is_recipe(name) else {name: DEFAULT_METHOD}, options)


@dataclass(frozen=True)
class Calibrated:
    """The updated recipe with the histograms behind it, the modules none of whose rows was longer than their budget
    (they stay dense), and what was kept afterwards on `checked` items, held out or not; of the first process alone.

    interception: see interception_of."""

    recipe: Recipe
    histograms: Histograms
    without_thresholds: list[str]
    kept: Meter
    checked: int
    held_out: bool
    checkpoint: Checkpoint
    interception: dict[str, Any] | None


def calibrate_target(
    target: Target,
    items: ItemSet,
    options: CalibrateOptions | None = None,
    *,
    directory: Path | None = None,
    processes: Processes | None = None,
    advance: Callable[[int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Calibrated:
    """Calibrates the target's plan on items with their gold answers.

    directory: where a killed run leaves what it has counted, and the same one goes on from there. processes: those
    that share the samples; all of them get the same recipe. advance: called with the number of items done; tell: with
    what a person should know. UsageError for unusable options; DataError if every row of the samples is within k, so
    that there is nothing to fit.
    """
    options, processes = options or CalibrateOptions(), processes or Processes()
    plan, fitted = _fitted(target.recipe.plan, options)
    if processes.is_main:
        warn_of_lost_mass(fitted)
    sampled = items.sample(options.samples, options.seed)
    chosen = with_distractors(sampled, options.distractors, options.seed, pool=items)
    task = task_for(target.loaded, chosen)
    observed = start(target.loaded.model, fitted, options.how)
    read = [task.calibration_inputs(item) for item in chosen.items]
    checkpoint = Checkpoint(directory, _run_key(target, plan, options, task, read), processes)
    done = set(checkpoint.resume(observed))
    if done and tell is not None:
        tell(f"going on from {len(done)} of {len(chosen)} items")

    def rest() -> Iterator[tuple[str, list[dict[str, Tensor]]]]:
        left = [(str(index), inputs) for index, inputs in enumerate(read) if str(index) not in done]
        if advance is not None:
            advance((len(chosen) - len(left)) // processes.count)
        for name, inputs in processes.share(left):
            if inputs:
                yield name, inputs
            checkpoint.save_at_times(observed)
            if advance is not None:
                advance(1)

    try:
        made = calibrate_items(target.loaded.model, plan, rest(), options.how, processes, observed)
        recipe = _recipe(target, items, chosen, options, made)
        others = _held_out(items, sampled, options)
        tried = (others or chosen.items[:CHECKED]) if processes.is_main else ()
        inputs = (one for item in tried for one in task.calibration_inputs(item))
        kept = measure_kept(target.loaded.model, made.plan, made.thresholds, inputs)
    except KeyboardInterrupt:
        checkpoint.save(observed)
        raise
    except SparsifyError:
        checkpoint.remove()
        raise
    without = [name for name in made.observed.histograms if name not in made.thresholds]
    said = interception_of(target.loaded.model, recipe.plan)
    return Calibrated(recipe, made.observed.histograms, without, kept, len(tried), bool(others), checkpoint, said)


def _fitted(plan: dict[str, Method], options: CalibrateOptions) -> tuple[dict[str, Method], dict[str, Method]]:
    """A plan with what is asked for, and the same with top-theta for top-k."""
    require_convertible(plan)
    plan = options.applied(plan)
    return plan, fitted_plan(plan, options.how)


def _recipe(target: Target, items: ItemSet, chosen: ItemSet, options: CalibrateOptions, made: Calibration) -> Recipe:
    """The target's recipe with its new plan, thresholds and record."""
    fitted = [method for name in made.thresholds if isinstance(method := made.plan[name], TopTheta)]
    hashes = [content_hash(chosen.items[int(name)]) for name in made.observed.items]
    loaded, how = target.loaded, options.how
    record = CalibrationRecord(
        dataset=items.name,
        split=items.split,
        fingerprint=items.fingerprint,
        samples=len(hashes),
        seed=options.seed,
        budget=describe_kept(fitted),
        items=tuple(sorted(set(hashes))),
        placement=", ".join(sorted({method.placement for method in fitted})),
        estimator=how.estimator,
        alpha=how.alpha,
        activations=how.activations,
        distractors=options.distractors,
        weights="" if has_offloaded_weights(loaded) else weights_fingerprint(loaded.model, loaded.unused),
    )
    return replace(
        target.recipe,
        base_model=loaded.base,
        plan=made.plan,
        thresholds=made.thresholds,
        calibration=record,
        before_calibration=options.applied(target.recipe.before_calibration or target.recipe.plan),
        versions=package_versions(),
    )


def _held_out(items: ItemSet, sampled: ItemSet, options: CalibrateOptions) -> Sequence[Item]:
    """Up to CHECKED items that were not calibrated on."""
    used = {content_hash(item) for item in sampled.items}
    more = items.sample(options.samples + 4 * CHECKED, options.seed)  # holds the sample, as it has the same seed
    others = [item for item in more.items if content_hash(item) not in used][:CHECKED]
    if not others:
        return ()
    return with_distractors(replace(items, items=tuple(others)), options.distractors, options.seed, pool=items).items


def _run_key(
    target: Target,
    plan: dict[str, Method],
    options: CalibrateOptions,
    task: Task,
    read: Sequence[list[dict[str, Tensor]]],
) -> str:
    """64 hex digits over everything that thresholds follow from. read: the model inputs of every item."""
    digest = hashlib.sha256()
    for inputs in chain.from_iterable(read):
        for name, tensor in sorted(inputs.items()):
            digest.update(f"{name} {tensor.tolist()}".encode())
    content = [
        dense_key(target.loaded, task),
        {name: method_to_dict(method) for name, method in plan.items()},
        asdict(options.how),
        digest.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
