"""`sparsify patch`: plan, prove, write the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..environment import package_versions
from ..errors import UsageError
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import other_attention, require_attention_modules
from ..patcher.binding.patching import check_module
from ..patcher.methods import METHODS, AttentionMethod
from ..patcher.plan import make_plan
from ..patcher.proof import Check, prove
from ..patcher.recipe import Recipe, check_writable, is_recipe, load_recipe
from .target import DEFAULT_K


@dataclass(frozen=True)
class Planned:
    """A recipe not yet written, and the attention classes of its model that it cannot reach."""

    recipe: Recipe
    unreachable: list[str]


def check_exclusive(k: int | None, keep: float | None) -> None:
    """UsageError if both are given."""
    if k is not None and keep is not None:
        raise UsageError("--k and --keep exclude each other: give one")


def make_method(
    attention: str, k: int | None, keep: float | None, protect_first: int = 0, protect_recent: int = 0
) -> AttentionMethod:
    """The method that the options describe; k = 64 where neither k nor keep is given. UsageError names the option."""
    if attention == "none":
        raise UsageError("--attention none leaves nothing to patch: choose " + " or ".join(METHODS))
    if attention not in METHODS:
        raise UsageError(f"unknown method {attention!r}: --attention takes {', '.join(METHODS)} or none")
    check_exclusive(k, keep)
    if k is None and keep is None:
        k = DEFAULT_K
    return METHODS[attention](k=k, keep=keep, protect_first=protect_first, protect_recent=protect_recent)


def plan_recipe(
    loaded: LoadedModel,
    method: AttentionMethod,
    *,
    layers: str | None = None,
    skip_layers: str | None = None,
    kind: str | None = None,
    stack: str | None = None,
) -> Planned:
    """The recipe for a model; NotPatchableError if none of its attention can be reached, UsageError as in make_plan."""
    modules = require_attention_modules(loaded.model)
    plan = make_plan(modules, method, layers=layers, skip_layers=skip_layers, kind=kind, stack=stack)
    for module in modules:
        if module.name in plan:
            check_module(module, method)
    recipe = Recipe(loaded.base, plan, versions=package_versions())
    return Planned(recipe, other_attention(loaded.model))


def check_output(recipe: Recipe, directory: Path, *, force: bool) -> None:
    """UsageError if the directory holds a recipe that differs from this one and `force` is off; SparsifyError if it
    cannot be written."""
    same = is_recipe(directory) and not force and _same(load_recipe(directory), recipe)
    check_writable(directory, force=force or same)


def prove_recipe(loaded: LoadedModel, recipe: Recipe) -> list[Check]:
    """The proof of patch; ProofFailedError names the module."""
    return prove(loaded.model, recipe.plan, recipe.thresholds, loaded.base.task)


def _same(old: Recipe, new: Recipe) -> bool:
    return old.calibration is None and replace(old, versions={}) == replace(new, versions={})
