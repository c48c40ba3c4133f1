"""The sensitivity map against computations of its own, and that the model stays dense while it is made."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.methods import Method, TopK, TopKFeedForward
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.tuning.gradients import DRAWS
from hf_sparsify.tuning.ladder import KL, STREAM, errors_of, make_ladder
from hf_sparsify.tuning.probe import Probe
from hf_sparsify.tuning.sensitivity import PREDICTED_KL, STREAM_ERROR, SensitivityMap, measure
from torch import Tensor
from transformers import PreTrainedModel

KEEPS = [1.0, 0.5, 0.2]


def one(name: str, length: int = 24) -> dict[str, Tensor]:
    return tiny_models.inputs(name, length=length, batch=1)


def mapped(model: PreTrainedModel, name: str, plan: dict[str, Method], **options: bool) -> SensitivityMap:
    return measure(model, plan, KEEPS, [[one(name)], [one(name, 17)]], **options)


def direct_errors(model: PreTrainedModel, call: dict[str, Tensor], keep: float) -> list[tuple[Tensor, Tensor]]:
    """Of each layer of a Llama, in float64 from the weights that the eager model returns: squared errors relative to
    the stream [n], and for each head the sums of squared errors and of squares [2, H]."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        done = model.double()(**call, use_cache=False, output_attentions=True, output_hidden_states=True)
    found = []
    for layer, weights, stream in zip(model.model.layers, done.attentions, done.hidden_states, strict=False):
        n, heads = weights.shape[-1], weights.shape[1]
        value = layer.self_attn.v_proj(layer.input_layernorm(stream)).view(1, n, -1, layer.self_attn.head_dim)
        value = value.transpose(1, 2).repeat_interleave(heads // value.shape[2], 1)
        kept = torch.zeros_like(weights)
        for row in range(n):
            k = max(1, -(-round(keep * 100) * (row + 1) // 100))
            best = weights[:, :, row].topk(k, -1)
            kept[:, :, row] = kept[:, :, row].scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))
        dense, sparse = weights @ value, kept @ value
        projected = [layer.self_attn.o_proj(part.transpose(1, 2).flatten(2)) for part in (dense, sparse)]
        size = (stream + projected[0]).pow(2).sum(-1)
        relative = (projected[1] - projected[0]).pow(2).sum(-1) / size
        by_head = torch.stack([(sparse - dense).pow(2).sum((0, 2, 3)), dense.pow(2).sum((0, 2, 3))])
        found.append((relative[0].detach(), by_head.detach()))
    return found


def test_errors_equal_a_direct_computation_in_float64() -> None:
    model = tiny_models.build("llama")
    plan = plan_model(model, TopK(keep=0.5))
    call = one("llama")
    found = measure(model, plan, KEEPS, [[call]])
    for place, keep in enumerate(KEEPS[1:], 1):
        for (relative, by_head), module in zip(direct_errors(model, call, keep), found.modules.values(), strict=True):
            torch.testing.assert_close(module.stream_error[place], float(relative.mean()), rtol=1e-3, atol=1e-9)
            heads = torch.tensor([errors[place] for errors in module.error_by_head], dtype=torch.float64)
            torch.testing.assert_close(heads, by_head[0] / by_head[1], rtol=1e-3, atol=1e-9)
        model.float()
        model.set_attn_implementation("sdpa")


def test_the_model_is_dense_to_the_bit_while_it_is_measured() -> None:
    for name in ("llama", "t5", "gpt2"):
        model = tiny_models.build(name)
        plan = plan_model(model, TopK(keep=0.5), TopKFeedForward(keep=0.5))
        call = one(name)
        with torch.inference_mode():
            dense = tiny_models.logits(model, call)
            with Probe(model, [plan, plan], lambda seen: None).watching():
                watched = tiny_models.logits(model, call)
            after = tiny_models.logits(model, call)
        assert torch.equal(dense, watched), name
        assert torch.equal(dense, after), name


def test_measuring_leaves_the_model_and_the_global_generator_as_they_were() -> None:
    model = tiny_models.build("llama")
    learning = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    mapped(model, "llama", plan_model(model, TopK(keep=0.5), TopKFeedForward(keep=0.5)))
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_shares_kept_are_those_of_the_keep_rates() -> None:
    model = tiny_models.build("t5")
    found = mapped(model, "t5", plan_model(model, TopK(keep=0.5), TopKFeedForward(keep=0.5)))
    for name, module in found.modules.items():
        assert module.kept[0] == 1.0
        assert module.kept == sorted(module.kept, reverse=True), name
        assert 0.5 <= module.kept[1] < 0.75, name
    cross = found.modules["decoder.block.0.layer.1.EncDecAttention"]
    assert (cross.kind, cross.stack, cross.layer) == ("cross", "decoder", 0)
    assert found.modules["encoder.block.0.layer.1.DenseReluDense.wo"].error_by_head is None


def test_v_rows_are_counted_where_steps_decode_and_times_where_asked() -> None:
    model = tiny_models.build("t5")
    plan = plan_model(model, TopK(keep=0.5))
    found = mapped(model, "t5", plan, decoding=True, timed=True)
    for module in found.modules.values():
        assert (module.v_rows is not None) == (module.stack == "decoder")
        assert module.microseconds is not None
        assert all(time > 0 for time in module.microseconds)
    plain = mapped(model, "t5", plan)
    assert all(module.v_rows is None and module.microseconds is None for module in plain.modules.values())


def test_a_model_without_a_distribution_has_stream_errors() -> None:
    from transformers import BertModel

    model = BertModel(tiny_models.build("bert").config).eval()
    call = {"input_ids": one("bert")["input_ids"]}
    found = measure(model, plan_model(model, TopK(keep=0.5)), KEEPS, [[call]])
    assert found.error_is == STREAM_ERROR
    assert all(module.error == module.stream_error for module in found.modules.values())
    assert list(errors_of(found)) == [STREAM]


def test_a_model_that_is_not_finite_is_one_sentence() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(SparsifyError, match=r"NaN or infinities in lm_head\.weight"):
        mapped(model, "llama", plan_model(model, TopK(keep=0.5)))


def test_without_memory_for_gradients_there_are_stream_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model, grad, told = tiny_models.build("llama"), torch.autograd.grad, []
    plan, calls = plan_model(model, TopK(keep=0.5)), []
    expected = mapped(model, "llama", plan)

    def second_is_too_large(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == DRAWS + 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return grad(*args, **options)

    monkeypatch.setattr("torch.autograd.grad", second_is_too_large)
    found = measure(model, plan, KEEPS, [[one("llama")], [one("llama", 17)]], tell=told.append)
    assert len(told) == 1
    assert "out of memory" in told[0]
    assert (found.error_is, found.items) == (STREAM_ERROR, 2)
    for name, module in found.modules.items():
        assert module.error == module.stream_error == expected.modules[name].stream_error
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_module_that_does_not_matter_is_made_as_sparse_as_possible() -> None:
    model = tiny_models.build("llama")
    names = list(plan_model(model, TopK(keep=0.5)))
    with torch.no_grad():
        model.get_submodule(names[0]).o_proj.weight.zero_()
    plan, keeps = plan_model(model, TopK(keep=0.5)), [1.0, 0.75, 0.5, 0.2]
    found = measure(model, plan, keeps, [[one("llama")], [one("llama", 17)]])
    assert found.error_is == PREDICTED_KL
    assert found.modules[names[0]].error == [0.0, 0.0, 0.0, 0.0]
    assert all(error > 0 for error in found.modules[names[1]].error[1:])
    tuned, _ = make_ladder(found, "kept", [0.5], names)
    for cell in tuned[0]:
        assert cell.keeps[names[0]] == 0.2, cell.by
        assert cell.keeps.get(names[1], 1.0) > 0.5, cell.by
    assert {cell.by for cell in tuned[0]} <= {KL, STREAM}
