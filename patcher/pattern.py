"""The attention weights of one input in chosen modules, of the dense and of the patched model, from their own calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .binding.attention import ModulePatch
from .binding.patching import apply_plan
from .methods import AttentionInputs, AttentionMethod, Chunk, Method, TopK
from .methods.budget import Budget
from .methods.clustered import ClusteredPlain
from .methods.row_chunk import weights_of
from .thresholds import ModuleThresholds


@dataclass(frozen=True)
class Weights:
    """What the queries of one sequence give to each key in one module.

    weights: float32 [H, q, n], 0 for dropped keys; the mass that V-mean compensation spreads over values is not in it.
    visible, kept, protected: bool [H, q, n], where a row may look, what it keeps, and what it would keep in any case.
    """

    weights: Tensor
    visible: Tensor
    kept: Tensor
    protected: Tensor


@dataclass(frozen=True)
class Pattern:
    """One module's weights for the same input in both models."""

    dense: Weights
    patched: Weights

    def kept_shares(self) -> list[float]:
        """Of each head: kept keys / visible keys."""
        kept, visible = (part.sum((1, 2)) for part in (self.patched.kept, self.patched.visible))
        shares: list[float] = (kept / visible.clamp(min=1)).tolist()
        return shares

    def overlaps(self) -> list[float]:
        """Of each head: the share of a row's weight that lies on the same keys in both models, mean over rows."""
        common = torch.minimum(self.dense.weights, self.patched.weights).sum(-1)
        shares: list[float] = common.mean(-1).tolist()
        return shares


def attention_patterns(
    model: nn.Module,
    plan: Mapping[str, Method],
    thresholds: Mapping[str, ModuleThresholds],
    inputs: Mapping[str, Tensor],
    names: Collection[str],
) -> dict[str, Pattern]:
    """The patterns of the attention modules `names` of a plan, each of its last call.

    inputs: of the model, one sequence without padding. The model must not be patched, and is left as it was. A module
    that is not called has none. Raises what apply_plan raises.
    """
    dense = _watched(model, {name: TopK(keep=1.0) for name in names}, {}, inputs, names)
    patched = _watched(model, plan, thresholds, inputs, names)
    return {name: Pattern(dense[name], patched[name]) for name in names if name in dense and name in patched}


def _watched(
    model: nn.Module,
    plan: Mapping[str, Method],
    thresholds: Mapping[str, ModuleThresholds],
    inputs: Mapping[str, Tensor],
    names: Collection[str],
) -> dict[str, Weights]:
    with apply_plan(model, plan, thresholds) as patch, torch.inference_mode():
        watches = {module.name: _watch(module) for module in patch.attention_patches if module.name in names}
        model(**inputs, use_cache=False)
    return {name: watch.found() for name, watch in watches.items() if watch.parts}


def _watch(patch: ModulePatch) -> _Rows | _Clusters:
    if isinstance(patch.method, ClusteredPlain):
        watch = _Clusters(patch.method)
        patch.method = cast(AttentionMethod, watch)
        return watch
    rows = _Rows(patch)
    patch.observer = rows
    return rows


@dataclass
class _Rows:
    """Observes a module with a budget, chunk by chunk."""

    patch: ModulePatch
    parts: list[tuple[int, Weights]] = field(default_factory=list)

    def __call__(self, chunk: Chunk) -> None:
        method = cast(Budget, self.patch.method)
        selection = self.patch.method.select(chunk, self.patch.thresholds)  # type: ignore[union-attr]
        kept = chunk.visible if selection.keep is None else selection.keep & chunk.visible
        weights = weights_of(chunk, selection, "none" if method.compensation == "none" else "sdc")
        protected = method.protected(chunk)
        if protected is None:
            protected = torch.zeros_like(kept)
        if chunk.start == 0:
            self.parts.clear()
        self.parts.append((chunk.low, _of_first(weights, chunk.visible, kept, protected)))

    def found(self) -> Weights:
        """All rows, as wide as what any of them sees."""
        width = max(low + part.weights.shape[-1] for low, part in self.parts)
        columns = zip(*(_spread(part, low, width) for low, part in self.parts), strict=True)
        return Weights(*(torch.cat(rows, 1) for rows in columns))


@dataclass
class _Clusters:
    """Stands in for a clustered method: with an identity for values, its output is its weights."""

    method: ClusteredPlain
    parts: list[Weights] = field(default_factory=list)

    def attend(self, inputs: AttentionInputs, **options: Any) -> tuple[Tensor, Any]:
        batch, groups, keys = inputs.key.shape[:3]
        identity = torch.eye(keys, device=inputs.key.device).expand(batch, groups, keys, keys)
        weights, _ = self.method.attend(replace(inputs, value=identity))
        everywhere = torch.ones_like(weights, dtype=torch.bool)
        self.parts = [_of_first(weights, everywhere, everywhere, torch.zeros_like(everywhere))]
        return self.method.attend(inputs, **options)

    def found(self) -> Weights:
        return self.parts[0]


def _of_first(weights: Tensor, *marks: Tensor) -> Weights:
    """The first sequence alone, on the CPU."""
    shape = weights.shape[1:]
    return Weights(weights[0].float().cpu(), *(mark[0].expand(shape).cpu() for mark in marks))


def _spread(part: Weights, low: int, width: int) -> list[Tensor]:
    """Columns low.. of tables so wide."""
    right = width - low - part.weights.shape[-1]
    tensors = (part.weights, part.visible, part.kept, part.protected)
    return [nn.functional.pad(tensor, (low, right)) for tensor in tensors]
