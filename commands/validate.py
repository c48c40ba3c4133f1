"""`sparsify validate`: is a recipe, perhaps edited by hand, what it should be, and does it fit its model?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from ..errors import NotPatchableError, RecipeMismatchError
from ..patcher.binding.patchable import check_module, check_name, patchable_modules
from ..patcher.methods import TopTheta
from ..patcher.methods.budget import Budget, budget_of
from ..patcher.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from .recipe_source import need_recipe
from .target import Target, require_default_recipe


def read_recipe(argument: str | None) -> str:
    """The name of the recipe, read once, so that what is wrong with its files is said before a model is loaded.

    None is ./sparsified. Raises what load_recipe and need_recipe raise, UsageError if there is no ./sparsified.
    """
    if argument is None:
        require_default_recipe()
    name = DEFAULT_RECIPE if argument is None else argument
    load_recipe(need_recipe(name).directory)
    return name


def check_target(target: Target) -> None:
    """RecipeMismatchError that lists everything in which a recipe does not fit its model or itself."""
    problems = [*_module_problems(target), *_calibration_problems(target.recipe)]
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise RecipeMismatchError(f"the recipe in {target.name} has {count}: " + "; ".join(problems))


def _module_problems(target: Target) -> Iterator[str]:
    recipe = target.recipe
    plans = [recipe.plan, *([recipe.before_calibration] if recipe.before_calibration else [])]
    for index, plan in enumerate(plans):
        found = patchable_modules(target.loaded.model, plan)
        for name, method in plan.items():
            try:
                check_name(name, found)
                check_module(found[name], method, recipe.thresholds.get(name) if index == 0 else None)
            except NotPatchableError as error:
                yield str(error) if index == 0 else f"before_calibration: {error}"


def _calibration_problems(recipe: Recipe) -> Iterator[str]:
    """Thresholds keep what they were fitted to keep, whatever k the plan says."""
    if recipe.calibration and not recipe.thresholds:
        yield "it was calibrated and its thresholds are gone: run `sparsify calibrate` again"
    if recipe.thresholds and not (recipe.calibration and recipe.before_calibration):
        yield "it has thresholds and does not say what they were fitted on: run `sparsify calibrate` again"
    for name in recipe.thresholds:
        method, before = recipe.plan[name], (recipe.before_calibration or {}).get(name)
        if not isinstance(method, TopTheta):
            yield f"{name} has thresholds and is {method.name}: patch anew, or make it top-theta"
        elif isinstance(before, Budget) and budget_of(before) != budget_of(method):
            yield (
                f"the thresholds of {name} were fitted at {_budget(before)} and the plan says {_budget(method)}: "
                "run `sparsify calibrate` again"
            )


def _budget(method: Budget) -> str:
    """What is not as it is by default, as in a recipe: 'k = 64, protect_first = 2'."""
    usual = {item.name: item.default for item in fields(Budget)}
    return ", ".join(f"{name} = {value}" for name, value in budget_of(method).items() if value != usual[name])
