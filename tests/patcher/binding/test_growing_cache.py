"""The cache that writes in place gives what transformers' own gives."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.binding.growing_cache import GrowingLayer, cache_argument, cache_in, growing_cache
from hf_sparsify.patcher.methods import TopK
from patched_models import GENERATORS, patched
from tiny_models import build, inputs
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

SPARSE = TopK(k=3, compensation="sdc+vmc")


def generate(model: Any, call: dict[str, Tensor], cache: Any, **how: Any) -> Any:
    call = {name: tensor for name, tensor in call.items() if not name.startswith("decoder")}
    return model.generate(
        **call,
        past_key_values=cache,
        max_new_tokens=12,
        min_new_tokens=12,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **how,
    )


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "patched"])
@pytest.mark.parametrize("name", GENERATORS)
def test_generation_is_the_same(name: str, sparse: bool, how: dict[str, int]) -> None:
    model: Any = patched(name, SPARSE) if sparse else build(name)
    call = inputs(name, "left")
    own, ours = generate(model, call, None, **how), generate(model, call, growing_cache(model), **how)
    assert torch.equal(ours.sequences, own.sequences)
    for one, other in zip(ours.scores, own.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def filled(tokens: int, capacity: int = 0) -> tuple[GrowingLayer, DynamicLayer]:
    """A growing layer and a plain one that hold the same."""
    ours, plain = GrowingLayer(capacity), DynamicLayer()
    for _ in range(tokens):
        append(ours, plain)
    return ours, plain


def append(ours: GrowingLayer, plain: DynamicLayer, batch: int = 2, tokens: int = 1) -> None:
    key, value = torch.randn(batch, 3, tokens, 4), torch.randn(batch, 3, tokens, 5)
    for got, expected in zip(ours.update(key, value), plain.update(key, value), strict=True):
        assert torch.equal(got, expected)


def test_tokens_are_written_in_place() -> None:
    ours, plain = filled(4, capacity=10)
    before = ours.keys.data_ptr()
    for _ in range(6):
        append(ours, plain)
    assert ours.keys.data_ptr() == before
    append(ours, plain)
    assert ours.capacity == 15
    for _ in range(4):
        append(ours, plain)


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        (lambda layer: layer.reorder_cache(torch.tensor([1, 1])), 2),
        (lambda layer: layer.crop(-3), 2),
        (lambda layer: layer.batch_repeat_interleave(2), 4),
        (lambda layer: layer.batch_select_indices(torch.tensor([1])), 1),
        (lambda layer: layer.reset(), 2),
    ],
    ids=["reorder", "crop", "repeat", "select", "reset"],
)
def test_after_a_change_it_goes_on_from_there(change: Any, batch: int) -> None:
    ours, plain = filled(5, capacity=20)
    change(ours)
    change(plain)
    append(ours, plain, batch)
    append(ours, plain, batch, tokens=4)


def test_a_copy_is_a_cache_of_its_own() -> None:
    ours, plain = filled(5, capacity=20)
    other = copy.deepcopy(ours)
    append(ours, plain)
    kept = ours.keys.clone()
    other.update(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 5))
    assert torch.equal(ours.keys, kept)


def test_what_autograd_has_seen_is_not_overwritten() -> None:
    layer = GrowingLayer(8)
    key = torch.randn(1, 1, 2, 4, requires_grad=True)
    keys, _ = layer.update(key, key)
    (keys**2).sum().backward()
    torch.testing.assert_close(key.grad, 2 * key.detach())


def test_no_cache_for_a_model_that_does_not_generate() -> None:
    assert growing_cache(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_the_argument_for_a_cache_is_one_that_the_forward_takes(name: str) -> None:
    model = build(name)
    assert cache_argument(model) in inspect.signature(model.forward).parameters
    call = inputs(name)
    with torch.no_grad():
        outputs = model(**call, use_cache=True, **{cache_argument(model): growing_cache(model)})
    found = cache_in(outputs)
    assert found is not None
    assert found.get_seq_length() > 0
    with torch.no_grad():
        assert cache_in(model(**call, use_cache=False)) is None
