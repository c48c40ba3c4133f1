"""Patching a loaded model in place, and undoing it exactly."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...errors import NotPatchableError, RecipeMismatchError, UsageError
from ..meter import Meter
from ..methods import METHODS, Method, TopKFeedForward, TopTheta
from ..methods.budget import Budget
from ..methods.clustered import ClusteredPlain
from ..thresholds import ModuleThresholds
from .attention import ATTENTION_NAME, PATCH_ATTRIBUTE, ModulePatch, register
from .feed_forward import (
    FeedForwardModule,
    FeedForwardPatch,
    feed_forward_modules,
    is_patched,
    require_feed_forward_modules,
)
from .modules import AttentionModule, attention_modules, require_attention_modules, unwrapped
from .value_sums import ValueSums

logger = logging.getLogger(__name__)

# The attribute of a model that holds its Patch.
MODEL_ATTRIBUTE = "_hf_sparsify"

Plan = Mapping[str, Method]


@dataclass
class Patch:
    """A patched model's record: what each module does, and what to put back.

    It lives on the model as plain data, so that deepcopy and pickle carry it along. As a context manager it restores
    the dense model at the end of the block.
    """

    model: nn.Module = field(repr=False)
    attention: list[tuple[nn.Module, ModulePatch]] = field(repr=False)
    feed_forward: list[FeedForwardPatch] = field(repr=False)
    configs: list[tuple[Any, str | None]] = field(repr=False)
    active: bool = field(default=False)
    hooks: list[RemovableHandle] = field(default_factory=list, repr=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()
        self.__dict__.update(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # The block may have unpatched the model, or calibrated it, which makes another patch.
        if getattr(self.model, MODEL_ATTRIBUTE, None) is not None:
            remove_patch(self.model)

    @property
    def attention_patches(self) -> list[ModulePatch]:
        return [patch for _, patch in self.attention]

    @property
    def module_patches(self) -> list[ModulePatch | FeedForwardPatch]:
        return [*self.attention_patches, *self.feed_forward]

    @property
    def paths(self) -> Counter[str]:
        """How many calls of all modules took which way, and why (see ModulePatch)."""
        return sum((module.paths for module in self.module_patches), Counter())

    def log_paths(self) -> None:
        """Tells whoever listens (--verbose) about the calls so far, if there were any."""
        if paths := self.paths:
            logger.info("calls: %s", describe_paths(paths))

    def activate(self) -> None:
        """Switches every planned module to its sparse method."""
        register()
        for module, patch in self.attention:
            setattr(module, PATCH_ATTRIBUTE, patch)
            if patch.sums is not None:
                self.hooks.append(module.register_forward_pre_hook(patch.sums, with_kwargs=True))
        for config, _ in self.configs:
            config._attn_implementation_internal = ATTENTION_NAME
        for layer in self.feed_forward:
            layer.install()
        self.active = True

    def deactivate(self) -> None:
        """Puts everything back as it was before."""
        for module, _ in self.attention:
            if hasattr(module, PATCH_ATTRIBUTE):
                delattr(module, PATCH_ATTRIBUTE)
        while self.hooks:
            self.hooks.pop().remove()
        for config, implementation in self.configs:
            config._attn_implementation_internal = implementation
        for layer in self.feed_forward:
            layer.uninstall()
        self.active = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model is dense inside the block."""
        was_active = self.active
        self.deactivate()
        try:
            yield
        finally:
            if was_active and getattr(self.model, MODEL_ATTRIBUTE, None) is self:
                self.activate()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """The model is patched inside the block, also where this patch was removed and others took turns with it."""
        self.activate()
        try:
            yield
        finally:
            self.deactivate()

    @contextmanager
    def metered(self, meter: Meter) -> Iterator[Meter]:
        """Counts what is kept inside the block."""
        for patch in self.module_patches:
            patch.meter = meter
        try:
            yield meter
        finally:
            for patch in self.module_patches:
                patch.meter = None


def apply_plan(model: nn.Module, plan: Plan, thresholds: Mapping[str, ModuleThresholds] | None = None) -> Patch:
    """Patches a loaded model in place: `plan` maps module names to methods; thresholds are for modules that use them.

    Everything is checked before anything is changed. Raises NotPatchableError for a model outside the interface or a
    module that cannot take its method, RecipeMismatchError for names or head counts that the model does not have,
    UsageError for an already patched model.
    """
    model = unwrapped(model)
    if getattr(model, MODEL_ATTRIBUTE, None) is not None:
        raise UsageError("the model is already patched: call hf_sparsify.unpatch(model) first")
    if not plan:
        raise UsageError("the plan names no module to patch")
    found = patchable_modules(model, plan)
    tables = thresholds or {}
    for name, method in plan.items():
        check_name(name, found)
        check_module(found[name], method, tables.get(name))
    if any(is_patched(found[name].module) for name in plan):
        raise UsageError(
            "feed-forward layers of this model are already patched: unpatch the model that they are in first"
        )
    attention = [target for name in plan if isinstance(target := found[name], AttentionModule)]
    configs = [(config, config._attn_implementation_internal) for config in _configs(model, attention)]
    if any(implementation == ATTENTION_NAME for _, implementation in configs):
        raise UsageError(
            "a model that shares its configuration with this one is already patched: unpatch that one first"
        )
    patch = Patch(model, [], [], configs)
    told: set[str] = set()
    for name, method in plan.items():
        module = found[name].module
        if isinstance(method, TopKFeedForward):
            patch.feed_forward.append(FeedForwardPatch(name, module, method))
        else:
            kind = found[name].kind
            sums = ValueSums(kind) if isinstance(method, Budget) and method.compensation == "sdc+vmc" else None
            patch.attention.append((module, ModulePatch(name, kind, method, tables.get(name), told, sums)))
    patch.activate()
    setattr(model, MODEL_ATTRIBUTE, patch)
    return patch


def prepare_patch(model: nn.Module, plan: Plan, thresholds: Mapping[str, ModuleThresholds] | None = None) -> Patch:
    """A patch of a model that stays dense: `resumed` switches it on, in turn with others. Raises as apply_plan."""
    patch = apply_plan(model, plan, thresholds)
    remove_patch(model)
    return patch


PatchableModule = AttentionModule | FeedForwardModule


def patchable_modules(model: nn.Module, plan: Plan) -> dict[str, PatchableModule]:
    """The modules of a model that any method can patch, by name.

    NotPatchableError if the plan has a method for a kind of module of which the model has none that can be patched.
    """
    wants_feed_forward = any(isinstance(method, TopKFeedForward) for method in plan.values())
    wants_attention = any(not isinstance(method, TopKFeedForward) for method in plan.values())
    found: list[PatchableModule] = []
    found += (require_attention_modules if wants_attention else attention_modules)(model)
    found += (require_feed_forward_modules if wants_feed_forward else feed_forward_modules)(model)
    return {target.name: target for target in found}


def check_name(name: str, found: Mapping[str, PatchableModule]) -> None:
    """RecipeMismatchError if there is no such module, with what may have been meant."""
    if name not in found:
        close = get_close_matches(name, found, n=1)
        hint = f" (is {close[0]} meant?)" if close else ": the recipe is for another model"
        raise RecipeMismatchError(f"the model has no module {name} that can be patched{hint}")


def check_module(target: PatchableModule, method: Method, table: ModuleThresholds | None = None) -> None:
    """UsageError for what is no method, NotPatchableError or RecipeMismatchError if a module cannot take a method or a
    threshold table."""
    if not isinstance(method, tuple(METHODS.values())):
        raise UsageError(f"{method!r} is no method: give an object such as hf_sparsify.TopK(k=64)")
    if isinstance(target, FeedForwardModule) != isinstance(method, TopKFeedForward):
        what = "a feed-forward layer" if isinstance(target, FeedForwardModule) else "attention"
        raise NotPatchableError(f"{target.name} is {what}, which {method.name} is not for")
    if not isinstance(target, AttentionModule):
        return
    if isinstance(method, ClusteredPlain) and target.nature != "bidirectional":
        later = target.causal or target.kind == "cross"
        raise NotPatchableError(
            f"{method.name} attention is for bidirectional self-attention only, and {target.name} is "
            f"{target.nature}, where {'later queries would move earlier rows' if later else 'rows see unlike keys'}: "
            "leave it out (--stack encoder selects an encoder alone), or choose top-k"
        )
    if isinstance(method, Budget) and method.protect_recent and not target.causal:
        raise NotPatchableError(
            f"recent keys can be protected in causal self-attention only, and {target.name} is {target.nature}: "
            "leave it out or protect none"
        )
    if table is not None:
        _check_table(target, method, table)


def _check_table(target: AttentionModule, method: Method, table: ModuleThresholds) -> None:
    """RecipeMismatchError if thresholds were fitted for another kind of scores than the module has; the factor on the
    scores is compared when the module is called, as some hand over another than they name."""
    again = "calibrate anew with `sparsify calibrate`"
    if target.heads is not None and table.heads != target.heads:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.heads} heads, the module has {target.heads}"
        )
    if isinstance(method, TopTheta) and method.placement != table.placement:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.placement} placement, the plan asks for "
            f"{method.placement}: {again}"
        )
    if isinstance(method, TopTheta) and method.denominator == "offline" and table.dropped is None:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} hold no offline denominator, which the plan asks for: {again}"
        )
    if table.nature is not None and table.nature != target.nature:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.nature}, the module is {target.nature}: {again}"
        )


def _configs(model: nn.Module, targets: list[AttentionModule]) -> list[Any]:
    """Every config object that an attention module or a sub-model reads: they are not always the same one."""
    if not targets:
        return []
    owners = [target.module for target in targets]
    owners += [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return list({id(owner.config): owner.config for owner in owners}.values())


def current_patch(model: nn.Module) -> Patch:
    """The patch of a model; UsageError if it is not patched."""
    patch = getattr(unwrapped(model), MODEL_ATTRIBUTE, None)
    if patch is None:
        raise UsageError("the model is not patched")
    return patch


def call_paths(model: nn.Module) -> Counter[str]:
    """How many attention and feed-forward calls of a patched model went to native kernels ("native"), and how many
    another way and why ("torch: head size 20"). UsageError if it is not patched."""
    return current_patch(model).paths


def describe_paths(paths: Mapping[str, int]) -> str:
    """'1,920 native; 64 torch: head size 20', the most frequent first."""
    ways = sorted(paths.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count:,} {way}" for way, count in ways)


def remove_patch(model: nn.Module) -> None:
    """Restores the dense model, to the bit. UsageError if it is not patched."""
    current_patch(model).deactivate()
    delattr(unwrapped(model), MODEL_ATTRIBUTE)
