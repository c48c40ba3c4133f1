"""After a proof the model is dense again, and a patch that forgets something is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch
from hf_sparsify.patcher import proof
from hf_sparsify.patcher.binding import attention
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, Patch
from hf_sparsify.patcher.checks import ProofFailedError
from hf_sparsify.patcher.methods import AttentionMethod, TopK
from hf_sparsify.patcher.proof import prove
from torch import nn


def plan_for(model: nn.Module) -> dict[str, AttentionMethod]:
    return {module.name: TopK(k=8) for module in attention_modules(model)}


def forget_modules(patch: Patch) -> None:
    for config, _ in patch.configs:
        config._attn_implementation_internal = attention.ATTENTION_NAME
    patch.active = False


def forget_configs(patch: Patch) -> None:
    for module, _ in patch.attention:
        if hasattr(module, attention.PATCH_ATTRIBUTE):
            delattr(module, attention.PATCH_ATTRIBUTE)
    patch.active = False


@pytest.mark.parametrize("forgetful", [forget_modules, forget_configs])
def test_an_unpatching_that_forgets_something_is_found(
    forgetful: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model)
    monkeypatch.setattr(Patch, "deactivate", forgetful)
    with pytest.raises(ProofFailedError) as caught:
        prove(model, plan, None, "causal-lm")
    assert "unpatching restores the dense model to the bit" in [c.name for c in caught.value.checks if not c.passed]


def test_an_error_while_proving_leaves_the_model_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama")
    before = tiny_models.logits(model, tiny_models.inputs("llama"))
    monkeypatch.setattr(proof, "typical_difference", lambda *tensors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prove(model, plan_for(model), None, "causal-lm")
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert torch.equal(tiny_models.logits(model, tiny_models.inputs("llama")), before)
