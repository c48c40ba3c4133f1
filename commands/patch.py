"""`sparsify patch`: plan, prove, write the recipe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibration.histogram_file import HISTOGRAMS_FILE, save_calibrated
from ..calibration.run import Histograms
from ..environment import package_versions
from ..errors import DataError, UsageError
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import unreachable_attention
from ..patcher.checks import Check
from ..patcher.methods import ATTENTION_METHODS, AttentionMethod, Method, TopKFeedForward
from ..patcher.methods.budget import Budget
from ..patcher.overrides import Override, parse_override
from ..patcher.plan import check_selection, plan_model
from ..patcher.preset import DEEP, dense_by_default, ranges
from ..patcher.proof import prove
from ..patcher.recipe import Recipe, check_writable, is_recipe, load_recipe, save_recipe
from .own_model import hide_model, place_model, staged_model
from .target import DEFAULT_COMPENSATION, DEFAULT_K

logger = logging.getLogger(__name__)

DEFAULT_DENSE_NOTE = (
    f"attention of layers {{}} stays dense by default in models with more than {DEEP} layers; --skip-layers none "
    "patches it too"
)
NO_LAYERS = "none"  # --skip-layers none

# A fraction, because d_ff differs between models by a factor of hundreds. ReLU layers stand far less; gated SiLU ones
# do not (docs/real-models.md).
DEFAULT_FFN_KEEP = 0.5


@dataclass(frozen=True)
class Planned:
    """A recipe not yet written, the attention classes of its model that it cannot reach, and what else to say of it.

    histograms: of the calibration that the recipe's thresholds come from, if any.
    """

    recipe: Recipe
    unreachable: list[str]
    notes: tuple[str, ...] = ()
    histograms: Histograms | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be patched and how: see plan_model. skip_layers may also be "none"."""

    attention: AttentionMethod | None
    feed_forward: TopKFeedForward | None = None
    overrides: tuple[Override, ...] = ()
    layers: str | None = None
    skip_layers: str | None = None
    kind: str | None = None
    stack: str | None = None

    @property
    def skipped(self) -> str | None:
        """As plan_model takes it."""
        return None if self.skip_layers == NO_LAYERS else self.skip_layers


def require_model(model: str | None, dataset: str | None, split: str | None) -> str:
    """UsageError if no model is named, or for options that go with --thresholds alone."""
    if dataset is not None or split is not None:
        raise UsageError("--dataset and --split go with --thresholds here; `sparsify calibrate` takes them too")
    if model is None:
        raise UsageError("name the MODEL to patch, such as demo-t5, or a calibrated recipe with --thresholds")
    return model


def make_wanted(
    attention: str,
    *,
    ffn: str = "none",
    ffn_k: int | None = None,
    ffn_keep: float | None = None,
    override: Sequence[str] | None = None,
    layers: str | None = None,
    skip_layers: str | None = None,
    kind: str | None = None,
    stack: str | None = None,
    **fields: Any,
) -> Wanted:
    """What the options of `sparsify patch` ask for; UsageError for what is wrong whatever the model is.

    fields: of the attention method, see make_method.
    """
    method, feed_forward = make_method(attention, **fields), make_feed_forward(ffn, ffn_k, ffn_keep)
    overrides = tuple(parse_override(text) for text in override or [])
    require_something(method, feed_forward, overrides)
    wanted = Wanted(method, feed_forward, overrides, layers, skip_layers, kind, stack)
    check_selection(layers=layers, skip_layers=wanted.skipped, kind=kind, stack=stack)
    return wanted


def check_exclusive(k: int | None, keep: float | None, prefix: str = "") -> None:
    """UsageError if both are given."""
    if k is not None and keep is not None:
        raise UsageError(f"--{prefix}k and --{prefix}keep exclude each other: give one")


def make_method(
    attention: str, k: int | None = None, keep: float | None = None, **options: Any
) -> AttentionMethod | None:
    """The attention method that the options describe, None for "none".

    options: further fields of methods; None, and 0 protected keys, are not given. Without k and keep, top-k and
    top-theta keep 64 keys per row. UsageError names the option that does not fit.
    """
    if attention not in (*ATTENTION_METHODS, "none"):
        raise UsageError(f"unknown method {attention!r}: --attention takes {', '.join(ATTENTION_METHODS)} or none")
    check_exclusive(k, keep)
    given = {name: value for name, value in {"k": k, "keep": keep, **options}.items() if value is not None}
    for name in ("protect_first", "protect_recent"):
        if given.get(name) == 0:
            del given[name]
    kind = ATTENTION_METHODS.get(attention)
    known = kind.__dataclass_fields__ if kind is not None else {}
    if unknown := [name for name in given if name not in known]:
        raise UsageError(f"--{unknown[0].replace('_', '-')} does not go with --attention {attention}")
    if kind is None:
        return None
    if issubclass(kind, Budget):
        given.setdefault("compensation", DEFAULT_COMPENSATION)
        if k is None and keep is None:
            given["k"] = DEFAULT_K
        if "v_mean" in given and given["compensation"] != "sdc+vmc":
            raise UsageError("--v-mean goes with --compensation sdc+vmc")
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
    try:
        return TopKFeedForward(k=k, keep=DEFAULT_FFN_KEEP if k is None and keep is None else keep)
    except UsageError as error:
        raise UsageError(f"--ffn top-k: {error}") from None


def require_something(attention: object, feed_forward: object, overrides: Sequence[Override]) -> None:
    """UsageError if the options leave nothing to patch, whatever the model is."""
    if attention is None and feed_forward is None and not any(override.method for override in overrides):
        raise UsageError(
            "--attention none leaves nothing to patch: choose an attention method, --ffn top-k or a method with --set"
        )


def plan_recipe(loaded: LoadedModel, wanted: Wanted, *, alike: bool = False) -> Planned:
    """The recipe for a model; raises what plan_model raises. The preset holds where no layers are asked for.

    alike: for any attention method, see dense_by_default.
    """
    preset: dict[str, int] = {}
    if wanted.layers is None and wanted.skip_layers is None:
        where = {"kind": wanted.kind, "stack": wanted.stack}
        preset = dense_by_default(loaded.model, wanted.attention, **where, alike=alike)
    plan = plan_model(
        loaded.model,
        wanted.attention,
        wanted.feed_forward,
        layers=wanted.layers,
        skip_layers=wanted.skipped,
        kind=wanted.kind,
        stack=wanted.stack,
        overrides=[*(Override(name, None) for name in preset), *wanted.overrides],
    )
    warn_of_lost_mass(plan)
    dense = {layer for name, layer in preset.items() if name not in plan}
    notes = [DEFAULT_DENSE_NOTE.format(ranges(dense))] if dense else []
    recipe = Recipe(loaded.base, plan, versions=package_versions())
    return Planned(recipe, unreachable_attention(loaded.model), tuple(notes))


def warn_of_lost_mass(plan: Mapping[str, Method]) -> None:
    """A warning if a plan drops softmax mass without giving it to anything."""
    if any(isinstance(method, Budget) and method.compensation == "sdc" for method in plan.values()):
        logger.warning(
            "warning: sdc alone is the worst choice measured: the lost mass goes nowhere; use --compensation sdc+vmc"
        )


def check_output(recipe: Recipe, directory: Path, *, force: bool) -> None:
    """UsageError if the directory holds a recipe that differs from this one and `force` is off; SparsifyError if it
    cannot be written."""
    check_writable(directory, force=force or _holds(directory, recipe))


def prove_recipe(loaded: LoadedModel, recipe: Recipe) -> list[Check]:
    """The proof of patch; ProofFailedError names the module."""
    return prove(loaded.model, recipe.plan, recipe.thresholds, loaded.base.task)


def save(planned: Planned, directory: Path, own: LoadedModel | None = None) -> Path:
    """Writes a recipe with the histograms behind its thresholds, if any; those of an earlier one go. SparsifyError if
    it cannot be written. own: its dense model, to be written beside it."""
    if own is None:
        return _save(planned, directory)
    with staged_model(own, directory) as staged:
        hide_model(directory)
        _save(planned, directory)
        place_model(staged, directory)
    return directory


def _save(planned: Planned, directory: Path) -> Path:
    if planned.histograms is not None:
        save_calibrated(planned.recipe, planned.histograms, directory)
        return directory
    return save_recipe(planned.recipe, directory, force=True, beside={HISTOGRAMS_FILE: None})


def _holds(directory: Path, recipe: Recipe) -> bool:
    """Whether a directory holds just this recipe; one that cannot be read is another."""
    if not is_recipe(directory):
        return False
    try:
        old = load_recipe(directory)
    except DataError:
        return False
    return replace(old, versions={}).to_dict() == replace(recipe, versions={}).to_dict()
