"""RECIPE or MODEL on the command line -> a loaded dense model with the recipe that applies to it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..environment import describe_environment, package_versions
from ..errors import RecipeMismatchError, UsageError
from ..evaluation.demo import DEMO_MODELS, demo_model_path
from ..patcher.binding.loading import LoadedModel, LoadOptions, load_model, options_for
from ..patcher.binding.modules import input_device, interception_of
from ..patcher.binding.tasks import TRANSCRIBING
from ..patcher.dtypes import dtype_name
from ..patcher.methods import TopK, method_to_dict
from ..patcher.methods.compensation import DEFAULT_COMPENSATION
from ..patcher.overrides import Override
from ..patcher.plan import describe_plan, plan_model
from ..patcher.preset import dense_by_default
from ..patcher.recipe import DEFAULT_RECIPE, BaseModel, Recipe, is_recipe, load_recipe
from .recipe_source import RecipeSource, find_recipe

logger = logging.getLogger(__name__)

DEFAULT_K = 64
DEFAULT_METHOD = TopK(k=DEFAULT_K, compensation=DEFAULT_COMPENSATION)


@dataclass(frozen=True)
class Target:
    """A dense model and the recipe for it.

    directory: the recipe's, where results go; None for the default recipe of a MODEL and for one on the Hub. hub: that
    one's name there. dense_layers: those whose attention the default recipe leaves dense.
    """

    loaded: LoadedModel
    recipe: Recipe
    directory: Path | None
    hub: str | None = None
    dense_layers: frozenset[int] = frozenset()

    @property
    def name(self) -> str | None:
        """The recipe as a person would name it; None for the default one of a MODEL."""
        return self.hub or (str(self.directory) if self.directory else None)

    @property
    def default_dataset(self) -> str:
        """What questions a person gets who names none; UsageError for a model of speech, which needs recordings."""
        if self.recipe.base_model.task in TRANSCRIBING:
            raise UsageError(
                f"{self.recipe.base_model.id} hears speech: name recordings with their texts with --dataset, such as a "
                "folder with metadata.csv, a file with the fields audio and text, or librispeech"
            )
        return default_dataset(self.recipe.base_model.id)


def default_dataset(model: str) -> str:
    """What questions a person gets who names none."""
    return "demo" if model in DEMO_MODELS else "squad"


def full_name(model: str) -> str:
    """A local folder by its full path, as recipes name it: answers of the dense model are known by that too."""
    is_folder = model not in DEMO_MODELS and os.path.isdir(model)
    return os.path.realpath(model) if is_folder else model


def load_named(name: str, options: LoadOptions) -> LoadedModel:
    """load_model, which also knows the embedded demo models by their names."""
    loaded = load_model(folder_of(name), options)
    return replace(loaded, base=replace(loaded.base, id=name)) if name in DEMO_MODELS else loaded


def folder_of(name: str) -> str:
    """The folder of an embedded demo model; any other name as it is."""
    return str(demo_model_path(name)) if name in DEMO_MODELS else name


def require_default_recipe() -> None:
    """UsageError if there is no recipe where commands look when they are not told."""
    if not is_recipe(DEFAULT_RECIPE):
        raise UsageError(f"there is no recipe in ./{DEFAULT_RECIPE}: run `sparsify patch MODEL` first, or name one")


def open_target(argument: str | None, options: LoadOptions, *, model: str | None = None) -> Target:
    """Loads what `argument` names: a recipe (see find_recipe), else a model (with the plan of `sparsify patch MODEL`).

    None is the recipe in ./sparsified. model: where a recipe's model is now. Raises UsageError if there is nothing to
    open, RecipeMismatchError for a recipe made for another model, and what loading raises.
    """
    if argument is None:
        require_default_recipe()
        argument = DEFAULT_RECIPE
    found = find_recipe(argument)
    if found is None:
        if model is not None:
            raise UsageError(f"--model goes with a recipe, and {argument} holds none")
        loaded = load_named(argument, options)
        preset = dense_by_default(loaded.model, DEFAULT_METHOD)
        plan = plan_model(loaded.model, DEFAULT_METHOD, overrides=[Override(name, None) for name in preset])
        recipe = Recipe(loaded.base, plan, versions=package_versions())
        return Target(loaded, recipe, None, dense_layers=frozenset(preset.values()))
    recipe = load_recipe(found.directory)
    source, made_for = found.base_model(recipe.base_model, model)
    loaded = load_named(source, options_for(made_for, options))
    check_same_model(recipe, loaded)
    if source == str(found.directory):
        # The recipe's own copy; whose copy it is the recipe says.
        loaded = replace(loaded, base=recipe.base_model)
    return _target(found, loaded, recipe)


def _target(found: RecipeSource, loaded: LoadedModel, recipe: Recipe) -> Target:
    return Target(loaded, recipe, None if found.hub else found.directory, found.hub)


def open_targets(arguments: Sequence[str], options: LoadOptions, *, model: str | None = None) -> list[Target]:
    """Several recipes for one model, which is loaded once; none is the recipe in ./sparsified.

    UsageError if a further one is no recipe or names another model; else as open_target.
    """
    first = open_target(arguments[0] if arguments else None, options, model=model)
    targets = [first]
    for argument in arguments[1:]:
        found = find_recipe(argument)
        if found is None:
            raise UsageError(f"{argument} holds no recipe; of several arguments all but the first have to")
        recipe = load_recipe(found.directory)
        if recipe.base_model.id != first.recipe.base_model.id:
            raise UsageError(
                f"{argument} is for {recipe.base_model.id} and {arguments[0]} for {first.recipe.base_model.id}: "
                "evaluate recipes for one model at a time"
            )
        check_same_model(recipe, first.loaded)
        targets.append(_target(found, first.loaded, recipe))
    return targets


def check_same_model(recipe: Recipe, loaded: LoadedModel) -> None:
    """RecipeMismatchError if a recipe was made for another model shape; a warning if for another revision."""
    made_for, found = recipe.base_model, loaded.base
    check_same_shape(made_for, found)
    if made_for.revision and found.revision and made_for.revision != found.revision:
        logger.warning(
            "the recipe was made for revision %s of %s, this is %s", made_for.revision, made_for.id, found.revision
        )


def check_same_shape(made_for: BaseModel, found: BaseModel) -> None:
    """RecipeMismatchError if a recipe's base model and the one that was found differ in shape."""
    if made_for.config_hash != found.config_hash:
        raise RecipeMismatchError(
            f"the recipe was made for {made_for.id} ({made_for.model_type}), and {found.id} ({found.model_type}) "
            "has another shape: patch it anew with `sparsify patch`"
        )


def describe_target(target: Target, recipe: Recipe) -> dict[str, Any]:
    """What was run, for results as JSON. recipe: the target's, or what is made of it."""
    model = target.loaded.model
    return {
        "recipe": target.name,
        "base_model": asdict(target.loaded.base),
        "method": describe_plan(recipe.plan),
        "plan": {name: method_to_dict(method) for name, method in recipe.plan.items()},
        "interception": interception_of(model, recipe.plan),
        "dtype": dtype_name(model.dtype),
        "device": str(input_device(model)),
        "versions": package_versions(),
        "environment": describe_environment(),
    }
