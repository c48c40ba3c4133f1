"""What transformers' caches do: unwritten slots, dropped keys, chunks, draft tokens that are taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.cells import through_a_cache, written
from families.every import EVERY
from families.family import scores
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import AttentionMethod, TopK
from patched_models import FEW, close, everything, far, patched
from tiny_models import build, inputs, logits
from torch import Tensor
from transformers import StaticCache

MEANS = TopK(k=3, compensation="sdc+vmc")
METHODS = pytest.mark.parametrize("method", [FEW, MEANS], ids=["top-k", "compensated"])
CHUNKED = [name for name, family in EVERY.items() if "chunked prefill" in family.modes]
WINDOWED = [name for name, family in EVERY.items() if family.window]


def sparse(name: str, method: AttentionMethod) -> Any:
    model = EVERY[name].build()
    apply_plan(model, everything(model, method))
    return model


@METHODS
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt2"])
def test_slots_of_a_static_cache_that_nothing_was_written_to_are_not_read(name: str, method: AttentionMethod) -> None:
    """Layers that see a window have no such slots: their cache is as long as the window."""
    model = patched(name, method)
    ids = inputs(name)["input_ids"]

    def last(fill: float) -> Tensor:
        cache = StaticCache(config=model.config, max_cache_len=20)
        with torch.no_grad():
            model(ids[:, :8], past_key_values=cache)
            for layer in cache.layers:
                layer.keys[:, :, 8:] = layer.values[:, :, 8:] = fill
            return torch.cat([model(token, past_key_values=cache).logits for token in ids[:, 8:].split(1, 1)], 1)

    found = last(float("nan"))
    assert torch.equal(found, last(0.0))
    close(found, logits(model, {"input_ids": ids})[:, 8:])


@METHODS
@pytest.mark.parametrize("name", WINDOWED)
def test_a_cache_that_drops_old_keys_gives_what_one_pass_gives(name: str, method: AttentionMethod) -> None:
    model, family = sparse(name, method), EVERY[name]
    close(through_a_cache(model, family), scores(model, family.inputs()))
    assert far(through_a_cache(family.build(), family), through_a_cache(model, family))


@pytest.mark.parametrize("name", CHUNKED)
def test_a_prompt_in_chunks_gives_what_a_whole_one_gives(name: str) -> None:
    model, family = sparse(name, MEANS), EVERY[name]
    whole = written(model, family)
    close(written(model, family, prefill_chunk_size=2), whole)
    assert far(written(family.build(), family), whole)


@METHODS
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_drafts_of_another_model_change_nothing(name: str, method: AttentionMethod) -> None:
    """The sparse model checks several drafted tokens at once, and takes back those that it would not have written."""
    model, draft = patched(name, method), build(name)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    prompt = {"input_ids": inputs(name, batch=1)["input_ids"]}
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "pad_token_id": 0}
    alone = model.generate(**prompt, **options)
    assert torch.equal(model.generate(**prompt, **options, assistant_model=draft), alone)
    assert not torch.equal(build(name).generate(**prompt, **options), alone)


@METHODS
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_drafts_from_the_prompt_change_nothing(name: str, method: AttentionMethod) -> None:
    model = patched(name, method)
    ids = inputs(name, batch=1)["input_ids"]
    prompt = {"input_ids": torch.cat([ids, ids[:, :6]], 1)}
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "pad_token_id": 0}
    alone = model.generate(**prompt, **options)
    assert torch.equal(model.generate(**prompt, **options, prompt_lookup_num_tokens=3), alone)
