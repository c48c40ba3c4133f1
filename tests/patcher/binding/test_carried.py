"""What is carried through decoding: sums of the value rows that a query sees."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny_models
import torch
from decoding import generate, reorder, repeat, select, steps
from hf_sparsify.patcher.binding import attention, carried
from hf_sparsify.patcher.binding.carried import Carried
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges, TopK, asking
from patched_models import GENERATORS, close, patched, state
from torch import Tensor
from transformers import DynamicCache, StaticCache

METHOD = TopK(k=3, compensation="sdc+vmc")


class Checked(Carried):
    """Compares every sum with one made from nothing, and counts both kinds."""

    made: int
    asked: int

    def with_carried(self, inputs: AttentionInputs) -> AttentionInputs:
        made = super().with_carried(inputs)
        value, visibility, found = inputs.value, inputs.visibility, made.value_sum
        if found is not None:
            assert isinstance(visibility, RowRanges)
            Checked.asked += 1
            for row in range(value.shape[0]):
                own = row if visibility.first.shape[0] > 1 else 0
                seen = value[row, :, int(visibility.first[own, 0]) : int(visibility.last[own, 0])]
                torch.testing.assert_close(found[row], seen.double().sum(1), rtol=1e-9, atol=1e-9)
        return made


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> type[Checked]:
    whole = carried._sum

    def counted(*arguments: Tensor) -> Tensor:
        Checked.made += 1
        return whole(*arguments)

    Checked.made = Checked.asked = 0
    monkeypatch.setattr(carried, "_sum", counted)
    monkeypatch.setattr(carried, "Carried", Checked)
    return Checked


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
    with_sums = generate(model, name, **options)
    assert checked.asked > 0 or "cache_implementation" in options  # there the mask is no range of keys
    monkeypatch.setattr(Carried, "with_carried", lambda self, inputs: inputs)
    assert torch.equal(with_sums, generate(model, name, **options))


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
    sums = Carried("self", sums=True, rounds="no")
    values = torch.randn(1, 2, 10_000, 4, generator=torch.Generator().manual_seed(0)) + 3

    found = None
    for length in range(1, 10_001):
        value = values[:, :, :length]
        sums._state.holds = length > 1
        inputs = AttentionInputs(value[:, :, :1], value, value, RowRanges.causal(1, length))
        found = sums.with_carried(inputs).value_sum
    assert checked.made == 1
    assert found is not None
    torch.testing.assert_close(found, values.double().sum(2), rtol=1e-12, atol=1e-9)


def test_nothing_is_carried_where_tensors_cannot_be_asked(checked: type[Checked]) -> None:
    model = patched("llama", METHOD)
    tokens = torch.randint(5, tiny_models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
    cache = DynamicCache(config=model.config)
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(asking, "answers", lambda tensor: False)
        found = [steps(model, cache, tokens[:, position : position + 1]) for position in range(9)]
    assert not checked.asked
    with torch.no_grad():
        close(torch.cat(found, 1), model(tokens, use_cache=False).logits)


def test_the_hook_goes_with_the_patch_and_what_is_carried_stays_behind() -> None:
    from hf_sparsify import unpatch

    dense = state(tiny_models.build("llama"))
    model = patched("llama", METHOD)
    generate(model, "llama", do_sample=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        own = [getattr(module, attention.PATCH_ATTRIBUTE, None) for module in twin.modules()]
        hooks = [patch.carried for patch in own if patch is not None]
        assert len(hooks) == 2
        assert all(one._state.seen is None and one.kind == "self" and one.sums for one in hooks)
        close(generate(twin, "llama", do_sample=False).float(), generate(model, "llama", do_sample=False).float())
        unpatch(twin)
        assert state(twin) == dense
    unpatch(model)
    assert state(model) == dense
    assert not any(isinstance(hook, Carried) for m in model.modules() for hook in m._forward_pre_hooks.values())


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
