"""Modules whose word on causality is missing, or is not what their calls say."""

from __future__ import annotations

import pytest
import torch
from families.every import EVERY
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, apply_plan, remove_patch
from hf_sparsify.patcher.methods import Clustered
from patched_models import FEW, WHOLE, everything, far


@pytest.mark.parametrize("name", ["splinter", "markuplm", "layoutlm"])
def test_a_module_that_does_not_say_whether_it_is_causal_is_not(name: str) -> None:
    """Without a mask its own word is all there is: the last token is seen by the first."""
    model, hidden = EVERY[name].build(), torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    target = attention_modules(model)[0]
    assert not hasattr(target.module, "is_causal")
    apply_plan(model, everything(model, WHOLE))
    changed = torch.cat([hidden[:, :5], hidden[:, 5:] + 1], 1)
    with torch.no_grad():
        assert far(target.module(changed)[0][:, 0], target.module(hidden)[0][:, 0])
        target.module.is_causal = True  # type: ignore[assignment]
        assert torch.equal(target.module(changed)[0][:, 0], target.module(hidden)[0][:, 0])


def text_states(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.text_model(input_ids=ids).last_hidden_state  # type: ignore[operator]


def test_what_a_call_says_counts_more_than_what_its_module_says() -> None:
    """CLIP's text tower: is_causal=False on the module, True in every call."""
    model, ids = EVERY["clip"].build(), EVERY["clip"].inputs()["input_ids"]
    changed = torch.cat([ids[:, :8], ids[:, 8:].flip(1)], 1)
    for method in (WHOLE, FEW):
        dense = text_states(model, ids)
        apply_plan(model, everything(model, method))
        found = text_states(model, ids)
        assert torch.equal(text_states(model, changed)[:, :8], found[:, :8])
        assert far(found, dense) == (method is FEW)
        remove_patch(model)


@pytest.mark.parametrize(("name", "reason"), [("clip", "causal self-attention"), ("modernbert", "in a window of 4")])
def test_clustered_attention_is_refused_before_anything_is_changed(name: str, reason: str) -> None:
    model = EVERY[name].build()
    with pytest.raises(NotPatchableError, match=reason):
        apply_plan(model, everything(model, Clustered(clusters=2, k=3)))
    assert not hasattr(model, MODEL_ATTRIBUTE)
