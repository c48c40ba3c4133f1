"""Rounded keys that are carried through decoding: what they are, when they are made anew, when they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from decoding import generate, reorder, repeat, select, steps
from hf_sparsify.patcher.binding import attention, carried
from hf_sparsify.patcher.binding.carried import Carried
from hf_sparsify.patcher.binding.growing_cache import growing_cache
from hf_sparsify.patcher.binding.patching import call_paths
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, TopK, TopTheta
from hf_sparsify.patcher.methods.rounded_keys import rounded
from patched_models import close, patched
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

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
    monkeypatch.setattr(attention, "kernel_of", lambda method, device: None)
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
    for method, rounds in ((TopK(k=3, compensation="sdc+vmc"), "no"), (TopK(k=3), "long"), (ROUNDING[1], "all")):
        hook = carried.carried_for("self", method)
        assert hook is not None
        assert (hook.sums, hook.rounds) == (method.compensation == "sdc+vmc", rounds)
