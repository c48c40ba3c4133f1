"""Interception beside what other libraries do to a model: adapters of PEFT, hooks of Accelerate, torch.autocast."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import plan_model
from intercepted_models import build, inputs, output
from patched_models import close, far, state

WHOLE, FEW = TopK(k=64), TopK(k=3, compensation="sdc+vmc")


@pytest.mark.parametrize("name", ["gptj", "mpnet"])
def test_adapters(name: str) -> None:
    peft = pytest.importorskip("peft")
    targets = {"gptj": ["q_proj", "v_proj"], "mpnet": ["q", "v"]}[name]
    model, call = build(name), inputs(name)
    plain = output(model, call)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    dense, before = output(adapted, call), state(adapted)
    plan = plan_model(adapted, WHOLE)
    assert list(plan) == list(plan_model(build(name), WHOLE))
    apply_plan(adapted, plan)
    close(output(adapted, call), dense)
    assert far(dense, plain)
    remove_patch(adapted)
    apply_plan(adapted, plan_model(adapted, FEW))
    sparse = output(adapted, call)
    assert far(sparse, dense)
    remove_patch(adapted)
    assert state(adapted) == before
    merged = adapted.merge_and_unload()
    apply_plan(merged, plan_model(merged, FEW))
    close(output(merged, call), sparse)


@pytest.mark.parametrize("first", ["hooks", "patch"])
@pytest.mark.parametrize("name", ["gptj", "falcon"])
def test_hooks_of_accelerate(name: str, first: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    call = inputs(name)
    reference = build(name)
    dense = output(reference, call)
    apply_plan(reference, plan_model(reference, FEW))
    expected = output(reference, call)
    model = build(name)
    if first == "hooks":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        apply_plan(model, plan_model(model, FEW))
    else:
        apply_plan(model, plan_model(model, FEW))
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(output(model, call), expected)
    remove_patch(model)
    assert torch.equal(output(model, call), dense)


def test_autocast() -> None:
    model, call = build("bloom"), inputs("bloom")
    exact = output(model, call)
    with torch.autocast("cpu", torch.bfloat16):
        dense = output(model, call)
        apply_plan(model, plan_model(model, WHOLE))
        whole = output(model, call)
    assert float((whole - exact).abs().mean()) < 1.5 * float((dense - exact).abs().mean())
    assert whole.dtype == dense.dtype
