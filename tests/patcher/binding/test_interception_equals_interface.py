"""Both routes are one method: models that call the interface, intercepted by force, give what they give through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.patcher.binding.attention import ModulePatch
from hf_sparsify.patcher.binding.interception import intercept
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import close, everything, far
from tiny_models import build, inputs, logits, real_positions
from transformers import PreTrainedModel

METHODS = {
    "top-k": TopK(k=3),
    "top-k, protected": TopK(k=3, protect_first=1),
    "top-k, min-length": TopK(k=3, min_length=8),
    "top-k, share": TopK(keep=0.3),
    "sdc": TopK(k=3, compensation="sdc"),
    "sdc+vmc": TopK(k=3, compensation="sdc+vmc"),
    "sdc+vmc, dropped": TopK(k=3, compensation="sdc+vmc", v_mean="dropped"),
    "top-theta": TopTheta(k=3, compensation="sdc+vmc"),
    "top-theta, scores": TopTheta(k=3, placement="pre-softmax"),
}
CASES = [("llama", "none"), ("llama", "left"), ("llama", "right"), ("bert", "none"), ("bert", "right")]


def table(method: AttentionMethod) -> ModuleThresholds | None:
    """Thresholds of one head each, for rows of two keys or more."""
    if not isinstance(method, TopTheta):
        return None
    heads = torch.tensor([[-2.0], [-1.5], [-1.0], [-0.5]]).expand(4, 2).contiguous()
    return ModuleThresholds(torch.tensor([2.0, 20.0]), heads, 2, 20, placement=method.placement)


@contextmanager
def intercepted(model: PreTrainedModel, method: AttentionMethod, **watched: Any) -> Iterator[list[ModulePatch]]:
    """A model in eager attention, all modules of which are intercepted. watched: fields of every patch."""
    model.set_attn_implementation("eager")
    patches, handles = [], []
    for target in attention_modules(model):
        patch = ModulePatch(target.name, target.kind, method, table(method), intercepted=True, **watched)
        patches.append(patch)
        handles += intercept(target.module, patch)
    yield patches
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("name", "padding"), CASES)
@pytest.mark.parametrize("label", METHODS)
def test_both_routes_give_the_same(label: str, name: str, padding: str) -> None:
    model, call, method = build(name).double(), inputs(name, padding), METHODS[label]
    real = real_positions(name, call)
    dense = logits(model, call)
    tables = {target.name: table(method) for target in attention_modules(model)} if table(method) else None
    meters = Meter(), Meter()
    patch = apply_plan(model, everything(model, method), tables)  # type: ignore[arg-type]
    with patch.metered(meters[0]):
        by_interface = logits(model, call)
    remove_patch(model)
    with intercepted(model, method, meter=meters[1]) as patches:
        by_interception = logits(model, call)
    close(by_interception[real], by_interface[real])  # Llama computes its softmax in float32, also in a float64 model
    assert far(by_interception[real], dense[real])
    assert all(patch.calls == 1 for patch in patches)
    kept = [{name: counts.to_dict() for name, counts in meter.modules.items()} for meter in meters]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_calibration_sees_the_same(name: str, padding: str) -> None:
    model, call, method = build(name).double(), inputs(name, padding), TopK(k=3)
    budget = Budget(k=3)
    seen: list[list[ScoreHistogram]] = [[], []]
    patch = apply_plan(model, everything(model, method))
    for module in patch.attention_patches:
        module.observer = ScoreHistogram(budget)
        seen[0].append(module.observer)
    logits(model, call)
    remove_patch(model)
    with intercepted(model, method) as patches:
        for module in patches:
            module.observer = ScoreHistogram(budget)
            seen[1].append(module.observer)
        logits(model, call)
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert one.counts.keys() == other.counts.keys()
        assert all(torch.equal(one.counts[bucket], other.counts[bucket]) for bucket in one.counts)
