"""Patching a loaded model in place, and undoing it exactly."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...errors import UsageError
from ..kernels import kernel_of
from ..meter import Meter
from ..methods import AttentionMethod, Method, TopKFeedForward
from ..thresholds import ModuleThresholds
from .attention import ATTENTION_NAME, PATCH_ATTRIBUTE, ModulePatch, register
from .carried import carried_for
from .distances import keep_distances, knows_distances, make_whole
from .feed_forward import FeedForwardPatch, is_patched
from .feed_forward_layer import layer_patch
from .interception import forget_graphs, intercept, leave_interrupted
from .modules import INTERCEPTION, INTERFACE, AttentionModule, head_width, unwrapped
from .patchable import PatchableModule, check_module, check_name, patchable_modules

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
    biased: list[nn.Module] = field(default_factory=list, repr=False)
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
            if patch.intercepted:
                self.hooks += intercept(module, patch)
            if patch.carried is not None:
                self.hooks.append(module.register_forward_pre_hook(patch.carried, with_kwargs=True))
        for config, _ in self.configs:
            config._attn_implementation_internal = ATTENTION_NAME
        for module in self.biased:
            self.hooks += keep_distances(module)
        for layer in self.feed_forward:
            layer.install()
        self._after_interception()
        self.active = True

    def deactivate(self) -> None:
        """Puts everything back as it was before."""
        for module, patch in self.attention:
            if hasattr(module, PATCH_ATTRIBUTE):
                delattr(module, PATCH_ATTRIBUTE)
            if patch.carried is not None:
                patch.carried.forget()
        while self.hooks:
            self.hooks.pop().remove()
        for config, implementation in self.configs:
            config._attn_implementation_internal = implementation
        for module in self.biased:
            make_whole(module)
        for layer in self.feed_forward:
            layer.uninstall()
        self._after_interception()
        self.active = False

    def _after_interception(self) -> None:
        if any(patch.intercepted for patch in self.attention_patches):
            leave_interrupted()
            forget_graphs()

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
    by_interface = [target for target in attention if target.route == INTERFACE]
    configs = [(config, config._attn_implementation_internal) for config in _configs(model, by_interface)]
    shared = any(hasattr(target.module, PATCH_ATTRIBUTE) for target in attention)
    if shared or any(implementation == ATTENTION_NAME for _, implementation in configs):
        raise UsageError(
            "a model that shares its configuration or modules with this one is already patched: unpatch that one first"
        )
    patch = Patch(model, [], [], configs, _biased(found.values(), configs))
    told: set[str] = set()
    for name, method in plan.items():
        module = found[name].module
        if isinstance(method, TopKFeedForward):
            layer = FeedForwardPatch(name, module, method)
            layer.layer = layer_patch(model.get_submodule(name.rpartition(".")[0]), layer)
            patch.feed_forward.append(layer)
        else:
            patch.attention.append((module, _attention_patch(found[name], method, tables.get(name), told)))
    patch.activate()
    setattr(model, MODEL_ATTRIBUTE, patch)
    return patch


def _attention_patch(
    target: PatchableModule, method: AttentionMethod, table: ModuleThresholds | None, told: set[str]
) -> ModulePatch:
    intercepted = isinstance(target, AttentionModule) and target.route == INTERCEPTION
    carried = None if intercepted else carried_for(target.kind, method)
    device = _weights_device(target.module)
    if table is not None:
        table.copy_to(device)
    prepare, width = getattr(kernel_of(method, device.type), "prepare", None), head_width(target.module)
    if prepare is not None and width is not None:  # otherwise the first call does it
        prepare(method, width, device)
    return ModulePatch(target.name, target.kind, method, table, told, carried, intercepted=intercepted)


def _weights_device(module: nn.Module) -> torch.device:
    """Where a module works; the CPU where that shows in the call only, as Accelerate offloads its weights."""
    weight = next(module.parameters(), None)
    return torch.device("cpu") if weight is None or weight.is_meta else weight.device


def prepare_patch(model: nn.Module, plan: Plan, thresholds: Mapping[str, ModuleThresholds] | None = None) -> Patch:
    """A patch of a model that stays dense: `resumed` switches it on, in turn with others. Raises as apply_plan."""
    patch = apply_plan(model, plan, thresholds)
    remove_patch(model)
    return patch


def _configs(model: nn.Module, targets: list[AttentionModule]) -> list[Any]:
    """Every config object that an attention module or a sub-model reads: they are not always the same one."""
    if not targets:
        return []
    owners = [target.module for target in targets]
    owners += [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return list({id(owner.config): owner.config for owner in owners}.values())


def _biased(found: Iterable[PatchableModule], configs: list[tuple[Any, str | None]]) -> list[nn.Module]:
    """The modules that read one of these configs and whose position bias is to stay by distance."""
    switched = {id(config) for config, _ in configs}
    modules = [target.module for target in found if isinstance(target, AttentionModule) and target.route == INTERFACE]
    return [module for module in modules if id(module.config) in switched and knows_distances(module)]


def current_patch(model: nn.Module) -> Patch:
    """The patch of a model; UsageError if it is not patched."""
    patch = getattr(unwrapped(model), MODEL_ATTRIBUTE, None)
    if patch is None:
        raise UsageError("the model is not patched")
    return patch


def call_paths(model: nn.Module) -> Counter[str]:
    """How many attention and feed-forward calls of a patched model went to native kernels ("native", or "native, 8-bit
    first" where rounded keys were read before few in full), and how many another way and why ("torch: head size 20").
    UsageError if it is not patched."""
    return current_patch(model).paths


def describe_paths(paths: Mapping[str, int]) -> str:
    """'1,920 native; 64 torch: head size 20', the most frequent first."""
    ways = sorted(paths.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count:,} {way}" for way, count in ways)


def remove_patch(model: nn.Module) -> None:
    """Restores the dense model, to the bit. UsageError if it is not patched."""
    current_patch(model).deactivate()
    delattr(unwrapped(model), MODEL_ATTRIBUTE)
