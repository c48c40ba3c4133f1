"""Patching a loaded model in place, and undoing it exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...errors import NotPatchableError, RecipeMismatchError, UsageError
from ..meter import Meter
from ..methods import AttentionMethod
from ..thresholds import ModuleThresholds
from .attention import ATTENTION_NAME, PATCH_ATTRIBUTE, ModulePatch, register
from .modules import AttentionModule, require_attention_modules

# The attribute of a model that holds its Patch.
MODEL_ATTRIBUTE = "_hf_sparsify"

Plan = Mapping[str, AttentionMethod]


@dataclass
class Patch:
    """A patched model's record: what each module does, and what to put back.

    It lives on the model as plain data, so that deepcopy and pickle carry it along.
    """

    modules: list[tuple[nn.Module, ModulePatch]]
    configs: list[tuple[Any, str | None]]
    active: bool = field(default=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()
        self.__dict__.update(state)

    @property
    def module_patches(self) -> list[ModulePatch]:
        return [patch for _, patch in self.modules]

    def activate(self) -> None:
        """Switches every planned module to its sparse method."""
        register()
        for module, patch in self.modules:
            setattr(module, PATCH_ATTRIBUTE, patch)
        for config, _ in self.configs:
            config._attn_implementation_internal = ATTENTION_NAME
        self.active = True

    def deactivate(self) -> None:
        """Puts everything back as it was before."""
        for module, _ in self.modules:
            if hasattr(module, PATCH_ATTRIBUTE):
                delattr(module, PATCH_ATTRIBUTE)
        for config, implementation in self.configs:
            config._attn_implementation_internal = implementation
        self.active = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model is dense inside the block."""
        self.deactivate()
        try:
            yield
        finally:
            self.activate()

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

    Everything is checked before anything is changed. Raises NotPatchableError for a model outside the interface,
    RecipeMismatchError for names or head counts that the model does not have, UsageError for an already patched model.
    """
    if getattr(model, MODEL_ATTRIBUTE, None) is not None:
        raise UsageError("the model is already patched: call hf_sparsify.unpatch(model) first")
    found = {target.name: target for target in require_attention_modules(model)}
    if not plan:
        raise UsageError("the plan names no module to patch")
    if missing := [name for name in plan if name not in found]:
        raise RecipeMismatchError(f"the model has no attention module {missing[0]}: the recipe is for another model")
    tables = thresholds or {}
    for name, method in plan.items():
        check_module(found[name], method, tables.get(name))
    configs = [(config, config._attn_implementation_internal) for config in _configs(model, found.values())]
    if any(implementation == ATTENTION_NAME for _, implementation in configs):
        raise UsageError(
            "a model that shares its configuration with this one is already patched: unpatch that one first"
        )
    patch = Patch(
        modules=[
            (found[name].module, ModulePatch(name, found[name].kind, method, tables.get(name)))
            for name, method in plan.items()
        ],
        configs=configs,
    )
    patch.activate()
    setattr(model, MODEL_ATTRIBUTE, patch)
    return patch


def check_module(target: AttentionModule, method: AttentionMethod, table: ModuleThresholds | None = None) -> None:
    """NotPatchableError or RecipeMismatchError if a module cannot take a method or a threshold table."""
    if method.protect_recent and not target.causal:
        raise NotPatchableError(
            f"recent keys can be protected in causal self-attention only, and {target.name} is "
            f"{'cross-attention' if target.kind == 'cross' else 'bidirectional'}: leave it out or protect none"
        )
    if table is not None and target.heads is not None and table.heads != target.heads:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.heads} heads, the module has {target.heads}"
        )


def _configs(model: nn.Module, targets: Any) -> list[Any]:
    """Every config object that an attention module or a sub-model reads: they are not always the same one."""
    owners = [target.module for target in targets]
    owners += [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return list({id(owner.config): owner.config for owner in owners}.values())


def current_patch(model: nn.Module) -> Patch:
    """The patch of a model; UsageError if it is not patched."""
    patch = getattr(model, MODEL_ATTRIBUTE, None)
    if patch is None:
        raise UsageError("the model is not patched")
    return patch


def remove_patch(model: nn.Module) -> None:
    """Restores the dense model, to the bit. UsageError if it is not patched."""
    current_patch(model).deactivate()
    delattr(model, MODEL_ATTRIBUTE)
