"""What is carried through decoding: sums of the value rows that a query sees, and rounded keys."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.patcher.binding import attention, carried
from hf_sparsify.patcher.binding.carried import Carried
from hf_sparsify.patcher.binding.growing_cache import growing_cache
from hf_sparsify.patcher.binding.patching import call_paths
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.rounded_keys import rounded
from patched_models import GENERATORS, close, patched, state
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

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


needs_native = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

ROUNDING = [
    TopK(k=3),
    TopK(k=3, compensation="sdc+vmc", denominator="rounded"),
    TopTheta(k=3, compensation="sdc+vmc", denominator="rounded"),  # without thresholds: its own top-k
]


class Rounding(Carried):
    """Compares all that is rounded with what it should be, before each step."""

    made: int
    asked: int

    def with_carried(self, inputs: AttentionInputs) -> AttentionInputs:
        before = self._state.rounded
        made = super().with_carried(inputs)
        if made.rounded is None:
            return made
        Rounding.asked += 1
        Rounding.made += before is None or made.rounded.filled is not before.filled
        panels = made.rounded.codes.permute(0, 1, 2, 4, 3).flatten(2, 3).float()
        for row, (first, last) in enumerate(made.rounded.filled.tolist()):
            found = panels[row, :, first:last] * made.rounded.steps[row, :, first:last, None]
            torch.testing.assert_close(found, rounded(inputs.key[row, :, first:last]), rtol=1e-6, atol=1e-9)
        return made


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> type[Rounding]:
    """Rounded keys from the first key on."""
    Rounding.made = Rounding.asked = 0
    monkeypatch.setattr(carried, "ROUNDED_FROM", 0)
    monkeypatch.setattr(carried, "Carried", Rounding)
    return Rounding


def in_one_pass(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits as decoding with the exact denominator has them."""
    with torch.no_grad():
        return model(tokens, use_cache=False).logits  # type: ignore[no-any-return]


@needs_native
@pytest.mark.parametrize("method", ROUNDING, ids=lambda method: method.describe())
@pytest.mark.parametrize("growing", [False, True], ids=["concatenated", "growing"])
def test_forty_steps_round_each_key_once(
    method: TopK | TopTheta, growing: bool, rounding: type[Rounding], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patched("llama", method)
    tokens = torch.randint(5, tiny_models.VOCABULARY, (2, 45), generator=torch.Generator().manual_seed(3))
    found = steps(model, growing_cache(model) if growing else DynamicCache(config=model.config), tokens)
    assert rounding.made == 2  # once in each of two layers
    assert rounding.asked == 2 * (43 if method.denominator == "exact" else 45)
    monkeypatch.setattr(attention, "kernel_of", lambda method: None)
    close(found, steps(model, DynamicCache(config=model.config), tokens))  # by the definition, from nothing every time


@needs_native
@pytest.mark.parametrize("change", [reorder, select, repeat])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_keys_of_a_changed_batch_are_rounded_anew(
    name: str, change: Callable[[Any], Tensor], rounding: type[Rounding]
) -> None:
    model = patched(name, TopK(k=3))
    tokens = torch.randint(5, tiny_models.VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(3))
    cache = DynamicCache(config=model.config)
    steps(model, cache, tokens[:, :8])
    order = change(cache)
    found = steps(model, cache, tokens[order, 8:])
    close(found, in_one_pass(model, tokens[order])[:, 8:])
    assert rounding.asked


@needs_native
@pytest.mark.parametrize("removed", [1, 3])
def test_keys_of_a_cropped_cache_are_rounded_anew(removed: int, rounding: type[Rounding]) -> None:
    model = patched("llama", TopK(k=3))
    tokens = torch.randint(5, tiny_models.VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(3))
    cache = DynamicCache(config=model.config)
    steps(model, cache, tokens[:, :8])
    cache.crop(-removed)
    found = steps(model, cache, tokens[:, 8:])
    other = torch.cat([tokens[:, : 8 - removed], tokens[:, 8:]], 1)
    close(found, in_one_pass(model, other)[:, 8 - removed :])
    assert rounding.made == 4  # two layers, twice


@needs_native
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_generating_gives_the_same_with_and_without_rounded_keys(
    name: str, options: dict[str, Any], rounding: type[Rounding], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patched(name, TopK(k=1))
    found = generate(model, name, do_sample=False, **options)
    ways = call_paths(model)
    if options:
        assert not rounding.asked  # beams make another cache in every step
    else:
        assert rounding.asked
        assert ways["native, 8-bit first"] > 0
    monkeypatch.setattr(Carried, "with_carried", lambda self, inputs: inputs)
    monkeypatch.setattr(Rounding, "with_carried", lambda self, inputs: inputs)
    assert torch.equal(found, generate(model, name, do_sample=False, **options))


@needs_native
def test_short_caches_are_read_in_full() -> None:
    model = patched("llama", TopK(k=3))
    generate(model, "llama", do_sample=False)
    assert "native, 8-bit first" not in call_paths(model)


@needs_native
def test_unpatching_gives_rounded_keys_back(rounding: type[Rounding]) -> None:
    from hf_sparsify import unpatch

    model = patched("llama", TopK(k=3))
    tokens = torch.randint(5, tiny_models.VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(3))
    steps(model, DynamicCache(config=model.config), tokens)
    hooks = [getattr(module, attention.PATCH_ATTRIBUTE).carried for module in model.modules()
             if hasattr(module, attention.PATCH_ATTRIBUTE)]  # fmt: skip
    assert all(hook._state.rounded is not None for hook in hooks)
    unpatch(model)
    assert all(hook._state.rounded is None for hook in hooks)


def test_methods_that_need_every_score_carry_no_rounded_keys() -> None:
    assert carried.carried_for("self", TopK(k=3, compensation="sdc")) is None
    assert carried.carried_for("self", TopK(k=3, protect_first=1)) is None
    for method, rounds in ((METHOD, "no"), (TopK(k=3), "long"), (ROUNDING[1], "all")):
        hook = carried.carried_for("self", method)
        assert hook is not None
        assert (hook.sums, hook.rounds) == (method.compensation == "sdc+vmc", rounds)
