"""One model as three contenders, and dense again after each."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.benchmark.arms import DENSE, EAGER, PATCHED, Arms
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.recipe import BaseModel, Recipe
from tiny_models import VOCABULARY, build
from transformers import PreTrainedModel

BASE = BaseModel("tiny", "causal-lm", "llama", "")


def arms_of(model: PreTrainedModel, k: int = 2) -> Arms:
    return Arms(model, Recipe(BASE, plan_model(model, TopK(k=k))))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 23)[None] % VOCABULARY
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_contender_is_what_it_says(family: str) -> None:
    model = build(family)
    before, was = logits(model), model.config._attn_implementation
    arms = arms_of(model)
    assert arms.names == (DENSE, EAGER, PATCHED)
    for arm in arms.names:
        with arms.use(arm):
            found = logits(model)
            name = model.config._attn_implementation
        assert name == {DENSE: was, EAGER: "eager", PATCHED: "hf_sparsify"}[arm]
        assert torch.allclose(found, before, atol=1e-5) == (arm != PATCHED)
        assert torch.equal(logits(model), before)
        assert model.config._attn_implementation == was


def test_a_model_that_is_eager_has_two() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    assert arms_of(model).names == (DENSE, PATCHED)
    assert model.config._attn_implementation == "eager"


def test_eager_attention_may_be_left_out() -> None:
    model = build("llama")
    plan = plan_model(model, TopK(k=2))
    assert Arms(model, Recipe(BASE, plan), eager=False).names == (DENSE, PATCHED)


def test_it_is_dense_after_an_error() -> None:
    model = build("llama")
    before, arms = logits(model), arms_of(model)
    for arm in arms.names:
        with pytest.raises(KeyError), arms.use(arm):
            raise KeyError
        assert torch.equal(logits(model), before)


def test_calls_are_counted_from_zero_again() -> None:
    model = build("llama")
    arms = arms_of(model)
    with arms.use(PATCHED):
        logits(model)
    assert arms.calls().total() == 2
    arms.clear_calls()
    assert arms.calls().total() == 0
