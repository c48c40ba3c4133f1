"""The families that are patched by interception: kinds, the proof of patch, undoing; and those that are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hf_sparsify.errors import NotPatchableError, UsageError
from hf_sparsify.patcher.binding.modules import (
    ACCURACY_ONLY,
    INTERCEPTION,
    INTERFACE,
    attention_modules,
    interception_of,
    unreachable_attention,
)
from hf_sparsify.patcher.binding.patching import apply_plan, call_paths, remove_patch
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, TopK
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.proof import prove
from intercepted_models import (
    BOTH_ROUTES,
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    REFUSED,
    build,
    inputs,
    output,
    real_positions,
    task_of,
)
from patched_models import PADDINGS, close, far, state
from torch.overrides import _get_current_function_mode
from transformers import PreTrainedModel

WHOLE, FEW = TopK(k=64), TopK(k=3)
COMPENSATED = TopK(k=3, compensation="sdc+vmc")


def patched(model: PreTrainedModel, method: AttentionMethod) -> PreTrainedModel:
    apply_plan(model, plan_model(model, method))
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_causal_whether_or_not_their_modules_say_so(name: str) -> None:
    found = attention_modules(build(name))
    # Newer transformers have GPT-J and CodeGen on the interface.
    route = found[0].route if name in ("gptj", "codegen") else INTERCEPTION
    assert [(m.kind, m.stack, m.layer, m.heads, m.route) for m in found] == [
        ("self", "decoder", 0, 4, route),
        ("self", "decoder", 1, 4, route),
    ]


@pytest.mark.parametrize("name", ["bloom", "codegen", "mpt"])
def test_a_decoder_without_its_head_is_causal_too(name: str) -> None:
    assert all(target.causal for target in attention_modules(build(name).base_model))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_bidirectional(name: str) -> None:
    found = attention_modules(build(name))
    assert [(m.kind, m.stack, m.layer, m.heads, m.route) for m in found] == [
        ("self", "encoder", 0, 4, INTERCEPTION),
        ("self", "encoder", 1, 4, INTERCEPTION),
    ]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_model_may_be_patched_by_both_routes(name: str) -> None:
    own = INTERFACE if name in BOTH_ROUTES else INTERCEPTION
    found = attention_modules(build(name))
    assert [(m.kind, m.stack, m.layer, m.heads, m.route) for m in found] == [
        ("self", "encoder", 0, 4, INTERCEPTION),
        ("self", "encoder", 1, 4, INTERCEPTION),
        ("self", "decoder", 0, 4, own),
        ("cross", "decoder", 0, 4, own),
        ("self", "decoder", 1, 4, own),
        ("cross", "decoder", 1, 4, own),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_proof_of_patch_passes(name: str) -> None:
    model = build(name)
    assert unreachable_attention(model) == []
    checks = prove(model, plan_model(model, COMPENSATED), None, task_of(name))
    assert len(checks) == (4 if name in ENCODERS else 6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_rows_are_dense_and_few_keys_are_not(name: str, padding: str) -> None:
    model, call = build(name), inputs(name, padding)
    real = real_positions(name, call)
    dense, before = output(model, call), state(model)
    close(output(patched(model, WHOLE), call)[real], dense[real])
    counts = call_paths(model)
    assert counts[ACCURACY_ONLY] == sum(target.route == INTERCEPTION for target in attention_modules(model))
    remove_patch(model)
    for method in (FEW, COMPENSATED):
        assert far(output(patched(model, method), call)[real], dense[real])
        remove_patch(model)
    assert state(model) == before
    assert torch.equal(output(model, call), dense)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_generation_with_a_cache_is_the_full_forward_pass(name: str) -> None:
    model = patched(build(name), COMPENSATED)
    call = {key: value for key, value in inputs(name, "left").items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "output_logits": True}
    cached, again = (
        model.generate(**call, **options, return_dict_in_generate=True, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached.sequences, again.sequences)
    close(torch.stack(cached.logits), torch.stack(again.logits))
    dense = build(name).generate(**call, **options, return_dict_in_generate=True)
    assert far(torch.stack(cached.logits)[0], torch.stack(dense.logits)[0])


def through_pickle(model: PreTrainedModel) -> PreTrainedModel:
    made: PreTrainedModel = pickle.loads(pickle.dumps(model))  # noqa: S301  # what was pickled here
    return made


@pytest.mark.parametrize("name", ["gptj", "falcon", "longt5 (local)"])
@pytest.mark.parametrize("how", [copy.deepcopy, through_pickle])
def test_a_copy_has_a_patch_of_its_own(name: str, how: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
    model, call = build(name), inputs(name)
    dense = output(model, call)
    sparse = output(patched(model, FEW), call)
    twin = how(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(output(twin, call), sparse)
    remove_patch(twin)
    assert torch.equal(output(twin, call), dense)
    assert call_paths(model)[ACCURACY_ONLY] == sum(m.route == INTERCEPTION for m in attention_modules(model))
    moved = output(model, call)
    remove_patch(model)
    assert far(output(model, call), moved)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptj", "falcon"])
def test_a_compiled_model_follows(name: str) -> None:
    model, call = build(name), inputs(name)
    del model.transformer.h[1:]
    compiled = torch.compile(model, backend="eager")
    dense = output(compiled, call)
    sparse = output(patched(model, COMPENSATED), call)
    close(output(compiled, call), sparse)
    assert far(sparse, dense)
    remove_patch(model)
    close(output(compiled, call), dense)


def test_a_part_of_a_patched_model_is_not_patched_again() -> None:
    model = patched(build("gptj"), FEW)
    with pytest.raises(UsageError, match="shares its configuration or modules with this one is already patched"):
        patched(model.transformer, WHOLE)
    remove_patch(model)


def test_what_is_said_of_a_plan() -> None:
    model = build("longt5 (local)")
    plan = plan_model(model, FEW)
    found = interception_of(model, plan)
    assert found is not None
    assert found["modules"] == [name for name in plan if name.startswith("encoder.")]
    assert found["note"].startswith("interception: accuracy only, in 2 modules (LongT5LocalAttention): ")
    assert interception_of(model, plan_model(model, FEW, stack="decoder")) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_neither_route_can_do_is_refused_by_name(name: str) -> None:
    model = build(name)
    before = state(model)
    with pytest.raises(NotPatchableError, match=REFUSED[name][2]):
        prove(model, plan_model(model, FEW), None, task_of(name))
    assert state(model) == before
    assert _get_current_function_mode() is None


def test_the_way_out_that_a_refusal_names_works() -> None:
    model = build("pegasus_x")
    with pytest.raises(NotPatchableError, match=r"--set 're:model\\\.encoder\\\.layers\\\.\\d\+\\\.self_attn=none'"):
        prove(model, plan_model(model, FEW), None, "seq2seq-lm")
    assert len(prove(model, plan_model(model, FEW, stack="decoder"), None, "seq2seq-lm")) == 6


@pytest.mark.parametrize("name", ["mpnet", "longt5 (local)"])
def test_clustering_scores_without_queries_and_keys_is_refused(name: str) -> None:
    with pytest.raises(NotPatchableError, match="clustered attention needs queries and keys, and encoder"):
        plan_model(build(name), Clustered(clusters=3, k=2), stack="encoder")
