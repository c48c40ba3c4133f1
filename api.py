"""The Python API: patch, unpatch, load, calibrate and evaluate models in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .calibration.options import CalibrationOptions
from .calibration.run import calibrate_plan
from .commands.evaluate import chosen_recipe, describe, make_options, make_task, warn_of_seen
from .commands.recipe_source import find_recipe, no_recipe
from .commands.target import DEFAULT_METHOD, open_target
from .errors import UsageError
from .evaluation.run import Contender
from .evaluation.run import evaluate as run_evaluation
from .evaluation.sources import load_items
from .patcher.binding.loading import LoadedModel, LoadOptions
from .patcher.binding.patching import Patch, apply_plan, current_patch, remove_patch
from .patcher.methods import AttentionMethod, Method, TopKFeedForward
from .patcher.plan import plan_model


def patch(
    model: nn.Module,
    method: AttentionMethod | Mapping[str, Method] | None = DEFAULT_METHOD,
    feed_forward: TopKFeedForward | None = None,
    *,
    layers: str | int | Iterable[int] | None = None,
    skip_layers: str | int | Iterable[int] | None = None,
    kind: str | None = None,
    stack: str | None = None,
) -> Patch:
    """Patches a loaded model in place and returns the record of it; `unpatch(model)` restores it to the bit.

    As a context manager (`with patch(model): ...`) the model is dense again after the block.
    method: one method for the selected attention (None leaves it dense), or a plan that maps module names to methods
    (then nothing else may be given). feed_forward: one for the selected feed-forward layers. layers, skip_layers, kind,
    stack: see make_plan. Raises NotPatchableError for what cannot be patched, RecipeMismatchError for a plan that names
    other modules, UsageError for a bad selection.
    """
    if isinstance(method, Mapping):
        if any(part is not None for part in (feed_forward, layers, skip_layers, kind, stack)):
            raise UsageError(
                "a plan names its modules: give no feed_forward, layers, skip_layers, kind or stack with it"
            )
        return apply_plan(model, method)
    plan = plan_model(model, method, feed_forward, layers=layers, skip_layers=skip_layers, kind=kind, stack=stack)
    return apply_plan(model, plan)


def unpatch(model: nn.Module) -> None:
    """Restores the dense model, to the bit. UsageError if it is not patched."""
    remove_patch(model)


def load(recipe: str | Path, *, model: str | None = None, options: LoadOptions | None = None) -> LoadedModel:
    """Loads a recipe's base model with its tokenizer and applies the recipe.

    recipe: a directory, or USER/NAME or USER/NAME@REVISION on the Hub. One that holds the model too (`patch
    --save-model`) needs no other. model: where the base model is now, if it moved. Raises UsageError where there is no
    recipe, DataError for a malformed one, RecipeMismatchError for a model of another shape, SparsifyError for a model
    that cannot be loaded.
    """
    if find_recipe(recipe) is None:
        raise no_recipe(recipe)
    target = open_target(str(recipe), options or LoadOptions(), model=model)
    apply_plan(target.loaded.model, target.recipe.plan, target.recipe.thresholds)
    return target.loaded


def calibrate(model: nn.Module, samples: Iterable[dict[str, Tensor]], **how: Any) -> Patch:
    """Replaces a model's patch by one with top-theta thresholds fitted on `samples`, at the same k per module.

    samples: inputs of the model's forward; padding is not counted. how: placement, estimator, alpha, activations,
    denominator (see CalibrationOptions). Raises UsageError if the model is not patched or options do not go together,
    DataError without samples; the old patch is back in place if anything fails.
    """
    options = CalibrationOptions(**how)
    old = current_patch(model)
    plan = {module.name: module.method for module in old.module_patches}
    thresholds = {module.name: module.thresholds for module in old.attention_patches if module.thresholds is not None}
    remove_patch(model)
    try:
        made = calibrate_plan(model, plan, samples, options)
        plan, thresholds = made.plan, made.thresholds
    finally:
        patched = apply_plan(model, plan, thresholds)
    return patched


def evaluate(
    target: str | Path,
    dataset: str,
    *,
    split: str | None = None,
    max_drop: float = 1.0,
    min_recovery: float | None = None,
    options: LoadOptions | None = None,
    **asking: Any,
) -> dict[str, Any]:
    """`sparsify eval` without files: the results of the unpatched and the patched model, with the verdict.

    target: a recipe directory, or a model (then with the plan of `sparsify patch MODEL`). dataset: see load_items.
    asking: limit, seed, batch_size, max_new_tokens, max_input_tokens, prompt_template, shots, shots_from, distractors,
    as_top_k (see EvalOptions). The dict is that of results.json without the names of the run and the hashes.
    """
    asked = make_options(max_drop, min_recovery, **asking)
    opened = open_target(str(target), options or LoadOptions())
    task = make_task(opened, load_items(dataset, split), asked)
    recipe = chosen_recipe(opened, asked)
    warn_of_seen(recipe, task)
    evaluations = run_evaluation(opened.loaded, [Contender(recipe.plan, recipe.thresholds)], task)
    return describe([opened], [recipe], evaluations, asked)[0]
