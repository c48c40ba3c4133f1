"""`sparsify patch`: plan, prove, write the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..environment import package_versions
from ..errors import DataError, UsageError
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import other_attention
from ..patcher.methods import ATTENTION_METHODS, AttentionMethod, TopKFeedForward
from ..patcher.methods.budget import Budget
from ..patcher.overrides import Override
from ..patcher.plan import plan_model
from ..patcher.proof import Check, prove
from ..patcher.recipe import Recipe, check_writable, is_recipe, load_recipe
from .target import DEFAULT_K

# A fraction, because d_ff differs between models by a factor of hundreds. ReLU layers stand far less; gated SiLU ones
# do not (docs/real-models.md).
DEFAULT_FFN_KEEP = 0.5


@dataclass(frozen=True)
class Planned:
    """A recipe not yet written, and the attention classes of its model that it cannot reach."""

    recipe: Recipe
    unreachable: list[str]


def check_exclusive(k: int | None, keep: float | None, prefix: str = "") -> None:
    """UsageError if both are given."""
    if k is not None and keep is not None:
        raise UsageError(f"--{prefix}k and --{prefix}keep exclude each other: give one")


def make_method(
    attention: str,
    k: int | None = None,
    keep: float | None = None,
    protect_first: int = 0,
    protect_recent: int = 0,
    clusters: int | None = None,
    min_length: int | None = None,
) -> AttentionMethod | None:
    """The attention method that the options describe, None for "none"; where neither k nor keep is given, top-k keeps
    64 keys per row. UsageError names the option that does not fit."""
    if attention not in (*ATTENTION_METHODS, "none"):
        raise UsageError(f"unknown method {attention!r}: --attention takes {', '.join(ATTENTION_METHODS)} or none")
    check_exclusive(k, keep)
    given: dict[str, Any] = {
        "k": k,
        "keep": keep,
        "protect_first": protect_first or None,
        "protect_recent": protect_recent or None,
        "clusters": clusters,
        "min_length": min_length,
    }
    given = {name: value for name, value in given.items() if value is not None}
    kind = ATTENTION_METHODS.get(attention)
    known = kind.__dataclass_fields__ if kind is not None else {}
    if unknown := [name for name in given if name not in known]:
        raise UsageError(f"--{unknown[0].replace('_', '-')} does not go with --attention {attention}")
    if kind is None:
        return None
    if issubclass(kind, Budget) and k is None and keep is None:
        given["k"] = DEFAULT_K
    return kind(**given)


def make_feed_forward(feed_forward: str, k: int | None = None, keep: float | None = None) -> TopKFeedForward | None:
    """The feed-forward method that the options describe, None for "none". UsageError names what does not fit."""
    if feed_forward not in ("none", "top-k"):
        raise UsageError(f"unknown feed-forward method {feed_forward!r}: --ffn takes top-k or none")
    if feed_forward == "none":
        if k is not None or keep is not None:
            raise UsageError("--ffn-k and --ffn-keep go with --ffn top-k")
        return None
    check_exclusive(k, keep, "ffn-")
    return TopKFeedForward(k=k, keep=DEFAULT_FFN_KEEP if k is None and keep is None else keep)


def require_something(attention: object, feed_forward: object, overrides: Sequence[Override]) -> None:
    """UsageError if the options leave nothing to patch, whatever the model is."""
    if attention is None and feed_forward is None and not any(override.method for override in overrides):
        raise UsageError(
            "--attention none leaves nothing to patch: choose an attention method, --ffn top-k or a method with --set"
        )


def plan_recipe(
    loaded: LoadedModel,
    attention: AttentionMethod | None,
    feed_forward: TopKFeedForward | None = None,
    *,
    layers: str | None = None,
    skip_layers: str | None = None,
    kind: str | None = None,
    stack: str | None = None,
    overrides: Sequence[Override] = (),
) -> Planned:
    """The recipe for a model; raises what plan_model raises."""
    plan = plan_model(
        loaded.model,
        attention,
        feed_forward,
        layers=layers,
        skip_layers=skip_layers,
        kind=kind,
        stack=stack,
        overrides=overrides,
    )
    return Planned(Recipe(loaded.base, plan, versions=package_versions()), other_attention(loaded.model))


def check_output(recipe: Recipe, directory: Path, *, force: bool) -> None:
    """UsageError if the directory holds a recipe that differs from this one and `force` is off; SparsifyError if it
    cannot be written."""
    check_writable(directory, force=force or _holds(directory, recipe))


def prove_recipe(loaded: LoadedModel, recipe: Recipe) -> list[Check]:
    """The proof of patch; ProofFailedError names the module."""
    return prove(loaded.model, recipe.plan, recipe.thresholds, loaded.base.task)


def _holds(directory: Path, recipe: Recipe) -> bool:
    """Whether a directory holds just this recipe; one that cannot be read is another."""
    if not is_recipe(directory):
        return False
    try:
        old = load_recipe(directory)
    except DataError:
        return False
    return old.calibration is None and replace(old, versions={}) == replace(recipe, versions={})
