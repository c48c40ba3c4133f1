"""Models with LoRA adapters of PEFT: patched with them, without them, merged."""

from __future__ import annotations

import copy
from typing import Any

import hf_sparsify
import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, current_patch
from hf_sparsify.patcher.methods import TopK, TopKFeedForward, TopTheta
from patched_models import close, far, state
from tiny_models import build, inputs, logits

peft = pytest.importorskip("peft")

TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "bert": ["query", "value", "output.dense"]}
WHOLE, FEW = TopK(keep=1.0), TopK(k=3)
ALL, SOME = TopKFeedForward(keep=1.0), TopKFeedForward(k=5)


def adapted(name: str, model: Any = None) -> Any:
    """A tiny model with a random, not yet trained LoRA adapter."""
    model = model if model is not None else build(name)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("name", TARGETS)
def test_whole_rows_are_the_adapted_model_and_unpatching_is_exact(name: str) -> None:
    model, call = adapted(name), inputs(name, "right")
    dense, before = logits(model, call), state(model)
    assert far(dense, logits(build(name), call))
    hf_sparsify.patch(model, WHOLE, ALL)
    real = call["attention_mask"].bool()
    close(logits(model, call)[real], dense[real])
    hf_sparsify.unpatch(model)
    assert state(model) == before
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("name", TARGETS)
def test_modules_have_the_names_of_the_model_without_adapter(name: str) -> None:
    plain, model = build(name), adapted(name)
    names = [module.name for module in hf_sparsify.patch(plain, FEW, SOME).module_patches]
    assert [module.name for module in hf_sparsify.patch(model, FEW, SOME).module_patches] == names
    hf_sparsify.unpatch(model)
    with hf_sparsify.patch(model, {names[0]: FEW}) as patch:
        assert patch.model is model.get_base_model()
    assert not hasattr(patch.model, MODEL_ATTRIBUTE)


@pytest.mark.parametrize("name", TARGETS)
def test_a_sparse_adapted_model_is_the_sparse_merged_one(name: str) -> None:
    model, call = adapted(name), inputs(name)
    merged = copy.deepcopy(model).merge_and_unload()
    dense = logits(model, call)
    for one in (model, merged):
        hf_sparsify.patch(one, FEW, SOME)
    sparse = logits(model, call)
    assert far(sparse, dense)
    close(sparse, logits(merged, call))
    # Merging in place changes the weights under the patch; one token at a time reads rows of them.
    step = {"input_ids": call["input_ids"][:1, :1]}
    expected = logits(model, step)
    model.merge_adapter()
    close(logits(model, call), sparse)
    close(logits(model, step), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_with_its_adapter_disabled_it_is_the_sparse_base_model(name: str) -> None:
    model, plain, call = adapted(name), build(name), inputs(name)
    for one in (model, plain):
        hf_sparsify.patch(one, FEW, SOME)
    with model.disable_adapter():
        assert torch.equal(logits(model, call), logits(plain, call))
    assert far(logits(model, call), logits(plain, call))


@pytest.mark.parametrize("name", TARGETS)
def test_merging_a_patched_model_leaves_a_model_that_can_be_unpatched_and_patched(name: str) -> None:
    model, call = adapted(name), inputs(name)
    dense = logits(model, call)
    hf_sparsify.patch(model, FEW, SOME)
    sparse = logits(model, call)
    merged = model.merge_and_unload()
    assert current_patch(merged) is current_patch(model)
    with pytest.raises(UsageError, match="already patched"):
        hf_sparsify.patch(merged, FEW)
    hf_sparsify.unpatch(merged)
    close(logits(merged, call), dense)
    hf_sparsify.patch(merged, FEW, SOME)
    close(logits(merged, call), sparse)


def test_merging_keeps_attention_sparse() -> None:
    model, call = adapted("llama"), inputs("llama")
    hf_sparsify.patch(model, FEW)
    sparse = logits(model, call)
    close(logits(model.merge_and_unload(), call), sparse)


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_put_on_a_patched_model(name: str) -> None:
    base, call = build(name), inputs(name)
    hf_sparsify.patch(base, FEW, SOME)
    model = adapted(name, base)
    assert current_patch(model) is current_patch(base)
    sparse = logits(model, call)
    hf_sparsify.unpatch(model)
    assert not hasattr(base, MODEL_ATTRIBUTE)
    dense = logits(model, call)
    assert torch.equal(dense, logits(adapted(name), call))
    assert far(sparse, dense)
    with hf_sparsify.patch(model, WHOLE, ALL):
        close(logits(model, call), dense)


def test_an_adapter_is_trained_on_a_patched_model() -> None:
    model, call = adapted("llama").train(), inputs("llama")
    hf_sparsify.patch(model, FEW, SOME)
    model(**call, labels=call["input_ids"]).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(gradient is not None and float(gradient.abs().max()) > 0 for gradient in gradients.values())


def test_calibrating_an_adapted_model() -> None:
    model = adapted("llama")
    hf_sparsify.patch(model, TopK(k=3), SOME)
    samples = [{"input_ids": inputs("llama", length=20)["input_ids"][:1]}]
    record = hf_sparsify.calibrate(model, samples)
    assert [module.method for module in record.attention_patches] == [TopTheta(k=3)] * 2
    assert all(module.thresholds is not None for module in record.attention_patches)
    assert [module.name for module in record.attention_patches] == [m.name for m in attention_modules(build("llama"))]


def test_prefix_tuning_sees_its_prefix() -> None:
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model, call = peft.get_peft_model(build("llama"), config).eval(), inputs("llama")
    dense = logits(model, call)
    with hf_sparsify.patch(model, WHOLE, ALL):
        close(logits(model, call), dense)
    with hf_sparsify.patch(model, FEW, SOME):
        assert far(logits(model, call), dense)
    assert torch.equal(logits(model, call), dense)
