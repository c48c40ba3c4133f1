"""Post-softmax thresholds on rows of several spans of keys, whose limits count on keys that are still to come.

Queries and keys are small whole numbers, so that scores are exact, as in test_rows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.kernels import rows
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import TopTheta
from hf_sparsify.patcher.methods.chunk import AttentionInputs
from hf_sparsify.patcher.methods.visibility import RowRanges
from hf_sparsify.patcher.thresholds import ModuleThresholds
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

METHOD = TopTheta(k=16, compensation="sdc")
KEYS = 7000  # three spans
QUERIES = 24  # with two heads a group: one block and a half


def example(keys: int = KEYS) -> AttentionInputs:
    generator = torch.Generator().manual_seed(3)
    query = torch.randint(-2, 3, (1, 4, QUERIES, 16), generator=generator).float()
    key = torch.randint(-2, 3, (1, 2, keys, 16), generator=generator).float()
    value = torch.randn(1, 2, keys, 16, generator=generator)
    return AttentionInputs(query, key, value, RowRanges.causal(QUERIES, keys), scale=0.125)


def table(theta: float, keys: int = KEYS) -> ModuleThresholds:
    """theta above or below the weight of a key where all weigh the same."""
    level = torch.full((4, 1), theta - math.log(keys))
    return ModuleThresholds(torch.tensor([float(keys)]), level, 1, keys, placement="post-softmax")


def check(inputs: AttentionInputs, thresholds: ModuleThresholds) -> Tensor:
    """Like the definition in float64; what is kept, int [1, H, queries]."""
    out, counts = rows.attend(inputs, METHOD, thresholds, count=True)
    bias = None if inputs.bias is None else inputs.bias.double()
    wide = {"query": inputs.query.double(), "key": inputs.key.double(), "value": inputs.value.double(), "bias": bias}
    expected, counted = METHOD.attend(replace(inputs, **wide), thresholds=thresholds, count=True)
    assert torch.equal(counts.kept, counted.kept)
    wanted = expected.to(out.dtype)
    loose = {} if out.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(out, wanted, **loose)
    return counts.kept


@pytest.mark.parametrize("keys", [3073, 3100, 6200, KEYS])
@pytest.mark.parametrize("what", ["alike", "near", "first", "sinks", "bias", "soft cap", "bf16"])
def test_like_the_definition(what: str, keys: int) -> None:
    inputs = example(keys)
    if what == "near":
        inputs.key[:, :, -50:] *= 3
    if what == "first":
        inputs.key[:, :, 0] *= 6
    if what == "sinks":
        inputs = replace(inputs, sinks=torch.tensor([9.0, -3.0, 8.0, 10.0]))
    if what == "bias":  # by which the later keys get little weight
        inputs = replace(inputs, bias=torch.linspace(0, -64, keys).round().expand(1, 4, QUERIES, keys).contiguous())
    if what == "soft cap":
        inputs.query.fill_(1)
        inputs.key[:, :, keys // 2 :] = 2
        inputs = replace(inputs, softcap=2.0)
    if what == "bf16":
        inputs = replace(inputs, **{name: getattr(inputs, name).bfloat16() for name in ("query", "key", "value")})
    kept = check(inputs, table(0.31, keys))
    assert 0 < int(kept.sum()) < kept.numel() * keys


def test_rows_of_a_block_that_see_different_keys() -> None:
    last = torch.full((1, QUERIES), KEYS)
    last[0, ::3] = 3500
    first = torch.zeros_like(last)
    first[0, 1::3] = 3300
    inputs = replace(example(), visibility=RowRanges(first, last))
    inputs.key[:, :, 3600:] *= 4  # nothing of it reaches the rows that end before
    check(inputs, table(0.31))


def test_a_later_key_changes_no_earlier_row() -> None:
    inputs = example()
    out, _ = rows.attend(inputs, METHOD, table(0.31))
    inputs.key[:, :, -1] = 50 * inputs.query[:, ::2, 0]
    again, _ = rows.attend(inputs, METHOD, table(0.31))
    assert torch.equal(again[:, :, :-1], out[:, :, :-1])


@pytest.mark.parametrize("keys", [6144, KEYS])
@pytest.mark.parametrize("level", [0.0, 3.0, -40.0])
def test_no_key_counts_twice(keys: int, level: float) -> None:
    """Where all scores are the same, bounds are as high as they may be: every key is just above its threshold."""
    inputs = replace(example(keys), query=torch.ones(1, 4, QUERIES, 16), visibility=RowRanges.all_keys(QUERIES, keys))
    inputs.key.fill_(level)
    assert bool((check(inputs, table(-2e-3, keys)) == keys).all())


def test_means_of_keys_that_overflow_are_no_bound() -> None:
    """Scores are about 1, but the sum of a run of keys is infinite."""
    inputs = example()
    inputs.key[..., 0] = 1.6e37 * inputs.key[..., 1]
    inputs.key[:, :, 5000:, 0] = 1.6e37
    inputs.query[..., 0] = 4e-37
    check(inputs, table(0.31))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [100, 4000, KEYS - 10])
def test_a_broken_key_spoils_the_rows_that_see_it(broken: float, at: int) -> None:
    inputs = example()
    inputs.query.abs_().add_(1)
    out, _ = rows.attend(inputs, METHOD, table(0.31))
    inputs.key[0, 1, at, 3] = broken
    again, _ = rows.attend(inputs, METHOD, table(0.31))
    sees = at < torch.arange(KEYS - QUERIES, KEYS) + 1
    assert bool(again[:, 2:, sees].isnan().all())
    assert torch.equal(again[:, 2:, ~sees], out[:, 2:, ~sees])
    assert torch.equal(again[:, :2], out[:, :2])
