"""One attention module that a model calls at several depths: ALBERT, and decoders that share their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from families.every import EVERY
from families.family import TEXT, scores
from hf_sparsify.patcher.binding.carried import Carried
from hf_sparsify.patcher.binding.patching import apply_plan, current_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import close, everything, far
from tiny_models import build, inputs, logits
from transformers import PreTrainedModel

DEPTH = 3


def albert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**{**TEXT, "num_hidden_layers": DEPTH}, embedding_size=16)
    return transformers.AlbertModel(config).eval()


def test_the_meter_counts_every_call_of_a_shared_module() -> None:
    model, call = albert(), EVERY["albert"].inputs("right")
    apply_plan(model, everything(model, TopK(k=3)))
    with current_patch(model).metered(Meter()) as meter:
        scores(model, call)
    [counts] = meter.modules.values()
    real = [12, 8]
    assert counts.rows == DEPTH * 4 * sum(real)
    assert counts.visible == DEPTH * 4 * sum(n * n for n in real)
    assert counts.kept == DEPTH * 4 * sum(n * 3 for n in real)
    assert [patch.calls for patch in current_patch(model).module_patches] == [DEPTH]


def test_one_table_of_thresholds_serves_every_depth() -> None:
    model, call = albert(), EVERY["albert"].inputs()
    dense = scores(model, call)
    for theta, sparse in ((-1e9, False), (1e9, True)):
        [name] = everything(model, TopK(k=3))
        table = ModuleThresholds(torch.tensor([1.0]), torch.full((4, 1), theta), 1, 64)
        with apply_plan(model, {name: TopTheta(k=3)}, {name: table}):
            found = scores(model, call)
        if sparse:
            assert far(found, dense)
        else:
            close(found, dense)


def sharing_decoder() -> PreTrainedModel:
    """A Llama whose second layer attends with the module of the first, each depth with a cache layer of its own."""
    model: Any = build("llama")
    shared = model.model.layers[0].self_attn
    model.model.layers[1].self_attn = shared
    for depth, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda layer, args, depth=depth: setattr(shared, "layer_idx", depth))
    return model


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_sums_of_values_are_those_of_their_own_depth(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharing_decoder()
    apply_plan(model, everything(model, TopK(k=3, compensation="sdc+vmc")))
    [patch] = current_patch(model).module_patches

    def generate() -> Any:
        return model.generate(
            **{name: value for name, value in inputs("llama", "left").items() if name != "position_ids"},
            **options,
            do_sample=False,
            min_new_tokens=6,
            max_new_tokens=6,
            output_logits=True,
            return_dict_in_generate=True,
        )

    carried = generate()
    assert patch.calls == 2 * 6
    monkeypatch.setattr(Carried, "with_carried", lambda self, inputs: inputs)
    anew = generate()
    assert torch.equal(carried.sequences, anew.sequences)
    close(torch.stack(carried.logits), torch.stack(anew.logits))


def test_a_module_that_is_called_twice_in_one_step_keeps_both_sums_apart() -> None:
    """Without a cache to look at, the same module on the values of two texts in turn."""
    model = sharing_decoder()
    apply_plan(model, everything(model, TopK(k=3, compensation="sdc+vmc")))
    call = inputs("llama")
    whole = logits(model, call)
    with torch.no_grad():
        steps, cache = [], None
        for token in call["input_ids"].split(1, 1):
            out = model(token, past_key_values=cache, use_cache=True)
            steps.append(out.logits)
            cache = out.past_key_values
    close(torch.cat(steps, 1), whole)
