"""Keys rounded to 8 bits, and the denominator that is made of their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import RowRanges, TopK, TopTheta
from hf_sparsify.patcher.methods.rounded_keys import LEVELS, RoundedKeys, rounded
from row_oracle import MOST_COMPENSATED, THETA, Sparse, named, rounded_key, row_by_row, run, table_for
from tiny_models import LAYOUTS, attention_inputs


def rounding_methods() -> list[Sparse]:
    found: list[Sparse] = [TopTheta(k=2, denominator="rounded")]
    for fields in MOST_COMPENSATED:
        found += [TopK(k=2, denominator="rounded", **fields)]  # type: ignore[arg-type]
        found += [TopTheta(k=2, placement=p, denominator="rounded", **fields) for p in THETA]  # type: ignore[arg-type]
    return found


METHODS = rounding_methods()


def test_a_rounded_key_is_as_near_as_its_step_allows() -> None:
    key = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1)
    found = rounded(key)
    step = key.abs().amax(-1, keepdim=True) / LEVELS
    assert bool(((found - key).abs() <= step * 0.5001).all())
    assert not torch.equal(found, key)
    expected = torch.tensor([[rounded_key(k) for k in b] for b in key.tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_small_whole_numbers_and_zeros_are_nearly_exact() -> None:
    key = torch.tensor([[0.0, 0.0, 0.0], [127.0, -64.0, 1.0]])
    torch.testing.assert_close(rounded(key), key, rtol=1e-6, atol=0)
    assert torch.equal(rounded(key.double()), rounded(key).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_keys_are_wide(dtype: torch.dtype) -> None:
    key = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert rounded(key).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_key_that_is_not_finite_is_no_number(broken: float) -> None:
    key = torch.ones(2, 4)
    key[1, 2] = broken
    found = rounded(key)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[0], key[0])


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize(
    "extra", [{}, {"heads": 4, "groups": 1, "sinks": True}, {"bias": True, "softcap": 2.0, "sinks": True}], ids=str
)
def test_a_step_equals_its_definition(method: Sparse, extra: dict[str, Any]) -> None:
    for layout in LAYOUTS:
        call, table = attention_inputs(layout, queries=1, keys=9, width=8, **extra), table_for(method)
        expected, found = row_by_row(call, method, table), run(call, method, table)
        assert torch.equal(found.kept, expected.kept)
        torch.testing.assert_close(found.output, expected.output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_it_is_near_the_exact_denominator_and_not_it(method: Sparse) -> None:
    call, table = attention_inputs("causal", queries=1, keys=60, width=16), table_for(method)
    exact = run(call, replace(method, denominator="exact"), table).output
    found = run(call, method, table).output
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)
    assert torch.equal(found, exact) == (method.compensation == "none")


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_several_queries_have_the_exact_denominator(method: Sparse) -> None:
    call, table = attention_inputs("causal", queries=7, keys=7), table_for(method)
    exact = run(call, replace(method, denominator="exact"), table).output
    assert torch.equal(run(call, method, table).output, exact)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_rows_that_keep_all_are_dense(method: Sparse) -> None:
    call = attention_inputs("causal", queries=1, keys=9)
    found = run(call, replace(method, min_length=20), table_for(method)).output
    torch.testing.assert_close(found, run(call, TopK(keep=1.0)).output)


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_key_that_is_not_finite_spoils_the_rows_that_see_it(method: Sparse, broken: float) -> None:
    call = attention_inputs("causal", queries=1, keys=9)
    call.key[0, 0, 4, 1] = broken
    found = run(call, method, table_for(method)).output
    assert bool(found[0, :2].isnan().all())
    assert not bool(found[0, 2:].isnan().any())
    hidden = replace(call, visibility=RowRanges(torch.full((1, 1), 5), torch.full((1, 1), 9)))
    assert not bool(run(hidden, method, table_for(method)).output.isnan().any())


def test_room_grows_with_what_it_holds() -> None:
    key = torch.zeros(2, 3, 20, 8)
    small = RoundedKeys.room_for(key, 20)
    assert small.room == 32
    for part in (small.codes, small.steps, small.errors, small.filled):
        part.copy_(torch.randint(1, 9, part.shape))
    large = small.enlarged(key, 100)
    assert large.room == 112
    assert torch.equal(large.codes[:, :, :2], small.codes)
    assert torch.equal(large.steps[..., :32], small.steps)
    assert torch.equal(large.errors[..., :32], small.errors)
    assert torch.equal(large.filled, small.filled)


@pytest.mark.parametrize(
    ("method", "fields", "reason"),
    [
        (TopK, {}, "denominator rounded goes with compensation sdc or sdc.vmc"),
        (TopK, {"compensation": "sdc", "denominator": "offline"}, "must be one of exact, rounded, not 'offline'"),
        (TopTheta, {"placement": "pre-softmax"}, "denominator rounded goes with compensation sdc or sdc.vmc"),
    ],
)
def test_what_it_does_not_go_with(method: type[Sparse], fields: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        method(k=2, **{"denominator": "rounded", **fields})


def test_which_methods_need_every_score() -> None:
    every = [TopK(k=2, compensation="sdc"), TopTheta(k=2), TopTheta(k=2, placement="pre-softmax", compensation="sdc")]
    few = [TopK(k=2), TopTheta(k=2, placement="max-relative"), *METHODS]
    few += [TopTheta(k=2, placement="pre-softmax", compensation="sdc", denominator="offline")]
    assert [method.reads_every_score for method in (*every, *few)] == [True] * len(every) + [False] * len(few)
