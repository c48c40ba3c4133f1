"""Sums of value rows that are carried through decoding: always those of the rows that a query sees."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.patcher.binding import attention, value_sums
from hf_sparsify.patcher.binding.value_sums import ValueSums
from hf_sparsify.patcher.methods import RowRanges, TopK, Visibility
from patched_models import GENERATORS, close, patched, state
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

METHOD = TopK(k=3, compensation="sdc+vmc")


class Checked(ValueSums):
    """Compares every sum with one made from nothing, and counts both kinds."""

    made: int
    asked: int

    def of_step(self, value: Tensor, visibility: Visibility, queries: int) -> Tensor | None:
        found = super().of_step(value, visibility, queries)
        if found is not None:
            assert isinstance(visibility, RowRanges)
            Checked.asked += 1
            for row in range(value.shape[0]):
                own = row if visibility.first.shape[0] > 1 else 0
                seen = value[row, :, int(visibility.first[own, 0]) : int(visibility.last[own, 0])]
                torch.testing.assert_close(found[row], seen.double().sum(1), rtol=1e-9, atol=1e-9)
        return found


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> type[Checked]:
    whole = value_sums._sum

    def counted(*arguments: Tensor) -> Tensor:
        Checked.made += 1
        return whole(*arguments)

    Checked.made = Checked.asked = 0
    monkeypatch.setattr(value_sums, "_sum", counted)
    monkeypatch.setattr("hf_sparsify.patcher.binding.patching.ValueSums", Checked)
    return Checked


def prompt(name: str, batch: int = 2) -> dict[str, Any]:
    call: dict[str, Any] = dict(tiny_models.inputs(name, "left", batch=batch))
    call.pop("position_ids", None)
    call.pop("decoder_input_ids", None)
    return call


def generate(model: PreTrainedModel, name: str, **options: Any) -> Tensor:
    with torch.no_grad():
        made = model.generate(**prompt(name), max_new_tokens=8, min_new_tokens=8, **options)
    assert isinstance(made, Tensor)
    return made


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["greedy", "beams", "static"],
)
def test_generating_gives_the_same_with_and_without_carried_sums(
    name: str, options: dict[str, Any], checked: type[Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patched(name, METHOD)
    carried = generate(model, name, **options)
    assert checked.asked > 0 or "cache_implementation" in options  # there the mask is no range of keys
    monkeypatch.setattr(ValueSums, "of_step", lambda *arguments: None)
    assert torch.equal(carried, generate(model, name, **options))


def test_only_the_first_step_sums_everything(checked: type[Checked]) -> None:
    model = patched("llama", METHOD)
    generate(model, "llama", do_sample=False)
    modules = 2
    assert checked.asked == 7 * modules
    assert checked.made == modules


def test_values_of_cross_attention_are_summed_once(checked: type[Checked]) -> None:
    model = patched("bart", METHOD)
    generate(model, "bart", do_sample=False)
    # Two decoder layers, each with self and cross-attention; 9 tokens are written, the first of them given.
    assert checked.asked > 4 * 6
    assert checked.made <= 2 * 4


def steps(model: PreTrainedModel, cache: Any, tokens: Tensor) -> Tensor:
    """Logits of tokens fed one by one."""
    with torch.no_grad():
        return torch.cat(
            [model(token, past_key_values=cache, use_cache=True).logits for token in tokens.split(1, dim=1)], 1
        )


def reorder(cache: Any) -> Tensor:
    cache.reorder_cache(torch.tensor([1, 0]))
    return torch.tensor([1, 0])


def select(cache: Any) -> Tensor:
    cache.batch_select_indices(torch.tensor([1]))
    return torch.tensor([1])


def repeat(cache: Any) -> Tensor:
    cache.batch_repeat_interleave(2)
    return torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("change", [reorder, select, repeat])
def test_a_changed_batch_is_noticed(name: str, change: Callable[[Any], Tensor], checked: type[Checked]) -> None:
    model = patched(name, METHOD)
    tokens = torch.randint(5, tiny_models.VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
    cache = DynamicCache(config=model.config)
    steps(model, cache, tokens[:, :8])
    order = change(cache)
    found = steps(model, cache, tokens[order, 8:])
    with torch.no_grad():
        close(found, model(tokens[order], use_cache=False).logits[:, 8:])
    assert checked.asked


@pytest.mark.parametrize("removed", [1, 3])
def test_a_cropped_cache_is_noticed(removed: int, checked: type[Checked]) -> None:
    model = patched("llama", METHOD)
    tokens = torch.randint(5, tiny_models.VOCABULARY, (1, 14), generator=torch.Generator().manual_seed(3))
    cache = DynamicCache(config=model.config)
    steps(model, cache, tokens[:, :8])
    cache.crop(-removed)
    other = torch.cat([tokens[:, : 8 - removed], tokens[:, 8:]], 1)
    found = steps(model, cache, tokens[:, 8:])
    with torch.no_grad():
        close(found, model(other, use_cache=False).logits[:, 8 - removed :])


def test_a_static_cache_that_is_used_again_is_noticed(checked: type[Checked]) -> None:
    model = patched("llama", METHOD)
    cache = StaticCache(config=model.config, max_cache_len=16)
    for seed in (3, 4):
        tokens = torch.randint(5, tiny_models.VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(seed))
        found = steps(model, cache, tokens)
        with torch.no_grad():
            close(found, model(tokens, use_cache=False).logits)
        cache.reset()


def test_two_caches_may_take_turns(checked: type[Checked]) -> None:
    model = patched("llama", METHOD)
    tokens = torch.randint(5, tiny_models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    found: list[list[Tensor]] = [[], []]
    for position in range(9):
        for row, cache in enumerate(caches):
            found[row].append(steps(model, cache, tokens[row : row + 1, position : position + 1]))
    with torch.no_grad():
        close(torch.cat([torch.cat(row, 1) for row in found]), model(tokens, use_cache=False).logits)


def test_ten_thousand_steps_drift_by_less_than_rounding(checked: type[Checked]) -> None:
    sums = ValueSums("self")
    values = torch.randn(1, 2, 10_000, 4, generator=torch.Generator().manual_seed(0)) + 3

    found = None
    for length in range(1, 10_001):
        value = values[:, :, :length]
        sums._state.holds = length > 1
        found = sums.of_step(value, RowRanges.causal(1, length), 1)
    assert checked.made == 1
    assert found is not None
    torch.testing.assert_close(found, values.double().sum(2), rtol=1e-12, atol=1e-9)


def test_the_hook_goes_with_the_patch_and_the_sum_stays_behind() -> None:
    from hf_sparsify import unpatch

    dense = state(tiny_models.build("llama"))
    model = patched("llama", METHOD)
    generate(model, "llama", do_sample=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        own = [getattr(module, attention.PATCH_ATTRIBUTE, None) for module in twin.modules()]
        sums = [patch.sums for patch in own if patch is not None]
        assert len(sums) == 2
        assert all(one._state.summed is None and one.kind == "self" for one in sums)
        close(generate(twin, "llama", do_sample=False).float(), generate(model, "llama", do_sample=False).float())
        unpatch(twin)
        assert state(twin) == dense
    unpatch(model)
    assert state(model) == dense
    assert not any(isinstance(hook, ValueSums) for m in model.modules() for hook in m._forward_pre_hooks.values())


def test_several_threads_may_use_one_model() -> None:
    model = patched("llama", METHOD)
    prompts = [
        torch.randint(5, tiny_models.VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(i)) for i in range(4)
    ]

    def answer(tokens: Tensor) -> Tensor:
        return steps(model, DynamicCache(config=model.config), tokens)

    alone = [answer(tokens) for tokens in prompts]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(answer, prompts * 3), alone * 3, strict=True):
            close(found, expected)
