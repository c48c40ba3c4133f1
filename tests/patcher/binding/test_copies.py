"""Copies of a patched model: deep ones, pickled ones and those saved to files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME
from hf_sparsify.patcher.binding.patching import (
    apply_plan,
    current_patch,
    remove_patch,
)
from patched_models import (
    FEW,
    everything,
    patched,
)
from tiny_models import build, inputs, logits
from transformers import AttentionInterface, AttentionMaskInterface


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_deep_copy_is_patched_on_its_own(name: str) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, call), sparse)
    assert current_patch(twin) is not current_patch(model)
    mine = {id(module) for module in twin.modules()}
    assert all(id(module) in mine for module, _ in current_patch(twin).attention)
    calls = [patch.calls for patch in current_patch(model).module_patches]
    logits(twin, call)
    assert [patch.calls for patch in current_patch(model).module_patches] == calls
    remove_patch(twin)
    assert torch.equal(logits(twin, call), logits(build(name), call))
    assert torch.equal(logits(model, call), sparse)
    remove_patch(model)
    assert torch.equal(logits(model, call), logits(twin, call))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_pickled_model_comes_back_patched_even_where_nothing_is_registered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    content = pickle.dumps(model)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    monkeypatch.delitem(AttentionInterface._global_mapping, ATTENTION_NAME)
    back = pickle.loads(content)  # noqa: S301
    assert torch.equal(logits(back, call), sparse)
    remove_patch(back)
    assert torch.equal(logits(back, call), logits(build(name), call))


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_a_saved_patched_model_loads_plainly_and_dense(name: str, tmp_path: Path) -> None:
    model, call = build(name), inputs(name)
    dense, implementation = logits(model, call), model.config._attn_implementation_internal
    apply_plan(model, everything(model, FEW))
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert "hf_sparsify" not in file.read_text()
    back = type(model).from_pretrained(tmp_path).eval()
    assert back.config._attn_implementation_internal == implementation
    assert torch.equal(logits(back, call), dense)
