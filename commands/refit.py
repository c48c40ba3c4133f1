"""`sparsify patch --thresholds`: a calibrated recipe at another budget, from the histograms of its calibration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.check import measure_kept
from ..calibration.histogram_file import histograms_of, record_of
from ..calibration.options import CalibrationOptions
from ..calibration.run import Histograms, fit_plan
from ..environment import package_versions
from ..errors import DataError, RecipeMismatchError, SparsifyError, UsageError
from ..evaluation.dense_cache import has_offloaded_weights
from ..evaluation.distractors import with_distractors
from ..evaluation.items import ItemSet, content_hash
from ..evaluation.report import per_k
from ..evaluation.sources import is_at_hand, load_items
from ..evaluation.tasks import task_for
from ..files import same_place
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import unreachable_attention
from ..patcher.methods.budget import Budget, describe_kept
from ..patcher.recipe import CalibrationRecord, Plan, Recipe, load_recipe
from ..patcher.weights import weights_fingerprint
from .patch import Planned, check_exclusive, warn_of_lost_mass
from .recipe_source import RecipeSource, find_recipe
from .target import Target
from .validate import check_target

logger = logging.getLogger(__name__)

MEASURED = 16  # items on which it is measured what thresholds keep
MAY_DIFFER = ("--k", "--keep")


@dataclass(frozen=True)
class Source:
    """A calibrated recipe, its record, and what its thresholds were read from."""

    directory: Path
    recipe: Recipe
    record: CalibrationRecord
    histograms: Histograms

    @property
    def calibrated_at(self) -> str:
        """As in a record ("k = 64"), also if the recipe itself was read at another budget."""
        return describe_kept(histogram.budget for histogram in self.histograms.values())

    def calibrated(self, plan: Plan) -> dict[str, Budget]:
        """The modules that were calibrated with their methods, but for those that a person took out of the plan."""
        return {name: method for name in self.histograms if isinstance(method := plan.get(name), Budget)}

    def at_another_budget(self, plan: Plan) -> bool:
        """Whether a plan has another k or keep than was calibrated."""
        return any(
            (method.k, method.keep) != (self.histograms[name].budget.k, self.histograms[name].budget.keep)
            for name, method in self.calibrated(plan).items()
        )

    def seen_otherwise(self, plan: Plan) -> bool:
        """Whether deeper modules saw other activations in calibration than with this plan."""
        return self.record.activations == "sparse" and self.at_another_budget(plan)


def check_options(
    given: Sequence[str], k: int | None, keep: float | None, dataset: str | None, split: str | None
) -> None:
    """UsageError for what does not go with --thresholds. given: the options of what to patch that were typed."""
    if others := [option for option in given if option not in MAY_DIFFER]:
        raise UsageError(
            f"{others[0]} does not go with --thresholds, where all but {' or '.join(MAY_DIFFER)} is the calibration's: "
            "leave it out, or patch with it and calibrate"
        )
    check_exclusive(k, keep)
    if k is not None or keep is not None:
        Budget(k=k, keep=keep)
    if split is not None and dataset is None:
        raise UsageError("--split goes with --dataset")


def check_output(directory: Path, output: Path, *, force: bool) -> None:
    """UsageError if the calibrated recipe in a directory would be written over and `force` is off."""
    if not force and same_place(output, directory):
        raise UsageError(
            f"the thresholds come from {directory}: use -o for another directory, or --force to replace that recipe"
        )


def read_source(directory: Path, model: str | None = None) -> Source:
    """The calibration in a recipe's directory, read before its model is loaded.

    model: where that is now, if a person says so. DataError, with the fix, if there is no calibration that can be used;
    SparsifyError if the model is gone.
    """
    found = find_recipe(directory) or RecipeSource(directory)
    directory, recipe = found.directory, load_recipe(found.directory)
    if model is None:
        try:
            found.base_model(recipe.base_model)
        except SparsifyError:
            gone = recipe.base_model.id
            raise SparsifyError(f"the recipe's model {gone} is not there any more: name where it is as MODEL") from None
    return Source(directory, recipe, record_of(recipe, directory), histograms_of(recipe, directory))


def refit(source: Source, target: Target, k: int | None = None, keep: float | None = None) -> Planned:
    """The calibrated recipe at k or keep; at its own budget if both are None.

    target: the same recipe with its model. RecipeMismatchError if that has other weights than the calibrated one, and
    for what `sparsify validate` finds; UsageError if the budget does not go with the rest of a method, DataError if no
    row was longer than it.
    """
    _check_weights(source, target)
    check_target(target)
    recipe, record = source.recipe, source.record
    plan, before = (_at(part, k, keep) for part in (recipe.plan, recipe.before_calibration or recipe.plan))
    how = _how(source, plan)
    thresholds = fit_plan(plan, source.histograms, how)
    if not thresholds:
        raise DataError(
            f"no row that was calibrated in {source.directory} is longer than its k: use a smaller --k, or calibrate "
            "on longer data"
        )
    warn_of_lost_mass(plan)
    methods = source.calibrated(plan)
    fitted, calibrated = describe_kept(methods[name] for name in thresholds), source.calibrated_at
    budget = fitted + (f" (calibrated at {calibrated})" if fitted != calibrated else "")
    made = replace(
        recipe,
        base_model=target.loaded.base,
        plan=plan,
        thresholds=thresholds,
        calibration=replace(record, budget=budget, estimator=how.estimator, alpha=how.alpha),
        before_calibration=before,
        versions=package_versions(),
    )
    check_target(replace(target, recipe=made))
    idle = [name for name in methods if name not in thresholds]
    notes = [f"{len(idle)} modules never saw a row longer than k, e.g. {idle[0]}: no thresholds"] if idle else []
    return Planned(made, unreachable_attention(target.loaded.model), tuple(notes), source.histograms)


def with_kept(planned: Planned, source: Source, loaded: LoadedModel, items: ItemSet | None = None) -> Planned:
    """With a note of what the thresholds keep where that may be off, or if items are given to measure it on.

    items: None for the calibration's data. A warning says why it may be off.
    """
    off = source.seen_otherwise(planned.recipe.plan)
    if off:
        logger.warning(
            "warning: in calibration deeper layers saw activations sparse at %s, so kept / k may be off at %s",
            source.calibrated_at,
            describe_kept(source.calibrated(planned.recipe.plan).values()),
        )
    if not off and items is None:
        return planned
    return replace(planned, notes=(*planned.notes, _kept_note(planned.recipe, source.record, loaded, items)))


def _at(plan: Plan, k: int | None, keep: float | None) -> Plan:
    if k is None and keep is None:
        return plan
    return {name: replace(m, k=k, keep=keep) if isinstance(m, Budget) else m for name, m in plan.items()}


def _how(source: Source, plan: Plan) -> CalibrationOptions:
    """As in calibration, but count-matched with a warning where the mean estimator cannot be read."""
    record = source.record
    if record.estimator == "mean" and source.at_another_budget(plan):
        logger.warning(
            "warning: the mean estimator can be read at %s alone, so these thresholds are count-matched; for mean ones "
            "run `sparsify calibrate` with the new budget",
            source.calibrated_at,
        )
        return CalibrationOptions(activations=record.activations)
    return CalibrationOptions(estimator=record.estimator, alpha=record.alpha, activations=record.activations)


def _check_weights(source: Source, target: Target) -> None:
    known, loaded = source.record.weights, target.loaded
    if not known or has_offloaded_weights(loaded) or weights_fingerprint(loaded.model, loaded.unused) == known:
        return
    raise RecipeMismatchError(
        f"{source.directory} was calibrated on {source.recipe.base_model.id}, and {loaded.base.id} has other weights, "
        "or another --dtype: calibrate it with `sparsify calibrate`"
    )


def _kept_note(recipe: Recipe, record: CalibrationRecord, loaded: LoadedModel, items: ItemSet | None) -> str:
    """What the new thresholds keep, or why that is not known."""
    try:
        chosen = measured_on(items or _calibrated_on(record), record)
        task = task_for(loaded, chosen)
    except SparsifyError as error:
        return f"kept / k was not measured: {error}; name other items with --dataset"
    inputs = (one for item in chosen.items for one in task.calibration_inputs(item))
    kept = measure_kept(loaded.model, recipe.plan, recipe.thresholds, inputs).total().summary()
    of = f"{len(chosen)} items of {chosen.name}"
    return f"kept / k on {of}: {per_k(kept)}" if kept["long_rows"] else f"no row of {of} is longer than k"


def _calibrated_on(record: CalibrationRecord) -> ItemSet:
    """The data of a calibration; SparsifyError if it is not there or has changed.

    A recipe may be a stranger's, so what only it names is not opened unasked.
    """
    if not is_at_hand(record.dataset):
        raise DataError(f"{record.dataset} is neither a file here nor a data set that `sparsify datasets` lists")
    items = load_items(record.dataset, record.split or None)
    if items.fingerprint != record.fingerprint:
        raise DataError(f"{record.dataset} has other items than in calibration")
    return items


def measured_on(items: ItemSet, record: CalibrationRecord) -> ItemSet:
    """A few items, held out from calibration if there are such, with as many distractors."""
    more = items.sample(MEASURED + len(record.items), record.seed).items
    held_out = tuple(item for item in more if content_hash(item) not in record.items)
    chosen = replace(items, items=held_out or more).sample(MEASURED, record.seed)
    return with_distractors(chosen, record.distractors, record.seed, pool=items)
