"""Gradients of top-k and top-theta attention against ordinary autograd over all pairs of queries and keys.

What a verifier of top-k attention asks for, and where it is tested (files here unless a folder is named):

1-3 whole rows are those of dense attention, 4 chunks, 5 the definition, 6 gradcheck, 7 locality, 9-12 masks, 17 large
scores, 18 nothing to do: this file. 8 causal: test_rows, here. 13 T5: binding/test_patching. 14 decoding:
test_feeding, here. 15 low precision: here, autocast in test_row_autograd. 16 ties: test_top_k, here. 19-22 dropout and
autograd: test_row_autograd. 23-27 memory: test_row_memory. 31, 35 models, saving, compiling: binding/test_families,
test_patching, test_copies, test_in_graph, test_training. 32 grouped queries: here. 33, 34 generation:
binding/test_sequences, test_caches. 36 peaked rows: test_peaked_rows. 38 learning: binding/test_training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, TopK, TopTheta, attend_rows
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from row_autograd import NAMES, assert_as_autograd, assert_equal, attended, gradients
from row_oracle import Sparse, named, run, sparse_methods, table_for
from tiny_models import LAYOUTS, attention_inputs
from torch import Tensor

EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "cap": {"softcap": 2.0, "bias": True},
    "sinks": {"sinks": True},
}
METHODS = [method for method in sparse_methods() if method.denominator == "exact"]
COMPENSATED = [
    *sparse_methods(compensation="sdc"),
    *sparse_methods(compensation="sdc+vmc"),
    *sparse_methods(compensation="sdc+vmc", v_mean="dropped"),
]


def by_distance(call: AttentionInputs, batch: int = 1) -> AttentionInputs:
    """The same call with a random bias by distance."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    made = torch.randn(batch, call.query.shape[1], queries + keys - 1, generator=torch.Generator().manual_seed(3))
    return replace(call, bias=DistanceBias(made.to(call.query.dtype), queries))


@pytest.mark.parametrize("queries", [40, 1])
@pytest.mark.parametrize("layout", ["all", "causal"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_whole_rows_have_the_gradients_of_dense_attention(
    layout: str, queries: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Cases 1, 2, 3 and 14."""
    call = attention_inputs(layout, batch=1, heads=2, queries=queries, keys=40, width=16, dtype=dtype)
    call = replace(call, scale=0.25)
    expected = gradients(attended, call)
    for k in (None, 40, 41, 400):
        select = None if k is None else TopK(k=k).select
        for size in (1, 7, 30, 100, None):
            found = gradients(lambda c, s=select, n=size: attend_rows(c, s, chunk_size=n)[0], call)  # type: ignore[misc]
            assert_equal(found, expected, tolerance)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS, ids=named)
def test_kept_keys_have_the_gradients_of_autograd(method: Sparse, layout: str, extra: str) -> None:
    """Cases 5, 9, 10, 12 and 32: in chunks, with grouped queries; all layouts of padding and masks."""
    call = attention_inputs(layout, queries=7, keys=9, **EXTRAS[extra])
    assert_as_autograd(method, call, table_for(method), chunk_size=3)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_bias_by_distance_has_its_gradient(batch: int, groups: int) -> None:
    for softcap in (None, 2.0):
        call = by_distance(attention_inputs("causal", groups=groups, queries=5, keys=9, softcap=softcap), batch)
        found = assert_as_autograd(TopK(k=3), call, chunk_size=2)
        assert found["bias"] is not None
        assert found["bias"].shape == (batch, 4, 13)
        assert found["bias"].abs().max() > 0


@pytest.mark.parametrize("method", [*METHODS, *COMPENSATED], ids=named)
def test_chunks_do_not_matter(method: Sparse) -> None:
    """Case 4, and compensation, which autograd over one chunk knows no other way."""
    call = attention_inputs("window", queries=7, keys=9, bias=True, sinks=True, softcap=3.0)
    table = table_for(method)
    whole = gradients(lambda c: run(c, method, table, 100).output, call)
    for size in (1, 3):
        assert_equal(gradients(lambda c, n=size: run(c, method, table, n).output, call), whole)  # type: ignore[misc]


@pytest.mark.parametrize("method", [TopK(k=4), *METHODS[1:], *COMPENSATED], ids=named)
def test_gradcheck(method: Sparse) -> None:
    """Case 6, re-entrant (gradcheck demands equal bits of two backward passes), over two chunks, by distance."""
    call = by_distance(attention_inputs("all", batch=1, heads=1, groups=1, queries=12, keys=12, width=4, sinks=True))
    parts = [call.query, call.key, call.value, call.bias.by_distance, call.sinks]  # type: ignore[union-attr]

    def attend(*given: Tensor) -> Tensor:
        query, key, value, bias, sinks = given
        made = replace(call, query=query, key=key, value=value, bias=DistanceBias(bias, 12), sinks=sinks)
        return run(made, method, table_for(method, heads=1), 8).output

    fast = method != TopK(k=4)
    assert torch.autograd.gradcheck(attend, [part.requires_grad_() for part in parts], fast_mode=fast)  # type: ignore[union-attr]


def test_keys_that_no_row_keeps_have_no_gradient() -> None:
    """Case 7."""
    call = attention_inputs("all", queries=5, keys=40, batch=1)
    kept = run(call, TopK(k=2)).kept
    found = gradients(lambda c: TopK(k=2).attend(c)[0], call)
    unread = ~kept.view(1, 2, 2, 5, 40).any(2).any(2)
    assert bool(unread.any(-1).all())
    assert not found["key"][unread].any()  # type: ignore[index]
    assert not found["value"][unread].any()  # type: ignore[index]
    assert found["value"][~unread].all()  # type: ignore[index]


@pytest.mark.parametrize("method", [TopK(k=8), TopTheta(k=2), *COMPENSATED[:1], *COMPENSATED[-1:]], ids=named)
def test_padding_full_of_nan_has_no_gradient_and_gives_none(method: Sparse) -> None:
    """Cases 9 to 11: a padded sequence has the gradients that it has alone."""
    call = attention_inputs("left", queries=7, keys=7, bias=True, softcap=2.0, sinks=True)
    assert isinstance(call.visibility, RowRanges)
    filled = {name: getattr(call, name).clone() for name in ("query", "key", "value")}
    for tensor in filled.values():
        tensor[1, :, :2] = torch.nan
    table = table_for(method)
    clean, found = (gradients(lambda c: run(c, method, table, 3).output, c) for c in (call, replace(call, **filled)))
    assert_equal(found, clean, 1e-12)
    for name in filled:
        assert not found[name][1, :, :2].any()  # type: ignore[index]
    alone = replace(
        call,
        visibility=RowRanges.causal(5, 5),
        bias=call.bias[..., 2:, 2:],  # type: ignore[index]
        **{name: getattr(call, name)[1:, :, 2:] for name in ("query", "key", "value")},
    )
    weight = torch.cos(torch.arange(2 * 4 * 7 * 4)).view(2, 4, 7, 4)[1:, :, 2:].double()
    leaves = [getattr(alone, name).detach().clone().requires_grad_() for name in ("query", "key", "value")]
    out = run(replace(alone, query=leaves[0], key=leaves[1], value=leaves[2]), method, table).output
    (out * weight).sum().backward()
    for name, leaf in zip(("query", "key", "value"), leaves, strict=True):
        torch.testing.assert_close(found[name][1:, :, 2:], leaf.grad, rtol=1e-12, atol=1e-12)  # type: ignore[index]


def test_what_a_row_does_see_is_not_hidden_from_its_gradient() -> None:
    call = attention_inputs("causal")
    value = call.value.clone()
    value[:, :, 0] = torch.nan
    found = gradients(lambda c: TopK(k=2).attend(c)[0], replace(call, value=value))
    assert found["query"][:, :, 0].isnan().all()  # type: ignore[index]
    assert torch.isfinite(found["value"]).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [-torch.inf, float(torch.finfo(torch.float32).min)])
@pytest.mark.parametrize("method", [None, TopK(k=2), *COMPENSATED], ids=named)
def test_biases_that_hide_keys_give_finite_gradients(method: Sparse | None, hidden: float) -> None:
    """Cases 11 and 12: an additive mask, one row of which hides all."""
    for sinks in (False, True):
        call = attention_inputs("all", bias=True, sinks=sinks, dtype=torch.float32)
        bias = call.bias.clone()  # type: ignore[union-attr]
        bias[..., 3:] = hidden
        bias[0, :, 2] = -torch.inf
        call = replace(call, bias=bias)
        if method is None:
            found = gradients(lambda c: attend_rows(c)[0], call)
        else:
            found = gradients(lambda c: run(c, method, table_for(method)).output, call)
        assert all(torch.isfinite(part).all() for part in found.values() if part is not None)
        assert not found["query"][:, :, 2].any()  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["left", "full"])
def test_low_precision_is_as_near_to_the_truth_as_dense_attention(layout: str, dtype: torch.dtype) -> None:
    """Cases 11 and 15: no row that sees nothing turns into NaN; no error above twice that of dense attention."""
    call = attention_inputs(layout, queries=32, keys=32, width=16, dtype=dtype, bias=True)
    call = replace(call, scale=0.25)
    exact = replace(call, **{n: getattr(call, n).double() for n in NAMES if getattr(call, n) is not None})
    expected = gradients(attended, exact)
    errors = [
        {n: (g.double() - expected[n]).abs().max() for n, g in gradients(attend, call).items()}  # type: ignore[union-attr,operator]
        for attend in (lambda c: TopK(k=32).attend(c)[0], attended)
    ]
    for name in ("output", "query", "key", "value"):
        assert errors[0][name] <= 2 * errors[1][name]
    few = gradients(lambda c: TopK(k=4).attend(c)[0], call)
    assert all(part.dtype == dtype and torch.isfinite(part).all() for part in few.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4)])
def test_large_scores_have_finite_gradients(dtype: torch.dtype, size: float) -> None:
    """Case 17."""
    call = attention_inputs("causal", dtype=dtype)
    call = replace(call, query=call.query / call.query.abs().max() * size)
    found = gradients(lambda c: TopK(k=2).attend(c)[0], call)
    assert all(torch.isfinite(part).all() for part in found.values() if part is not None)


def test_ties_and_single_keys() -> None:
    """Cases 8 and 16: row 0 is its value; equal scores share weight 1 among exactly k."""
    call = attention_inputs("causal")
    found = assert_as_autograd(TopK(k=1), call)
    torch.testing.assert_close(found["output"][:, ::2, 0], call.value[:, :, 0])  # type: ignore[index]
    level = replace(call, query=torch.zeros_like(call.query), visibility=RowRanges.all_keys(7, 7))
    found = assert_as_autograd(TopK(k=3), level)
    assert not found["value"][:, :, 3:].any()  # type: ignore[index]


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("method", [TopK(k=2), TopK(k=2, compensation="sdc+vmc"), TopTheta(k=2)], ids=named)
def test_nothing_to_do(method: Sparse, batch: int, queries: int, keys: int) -> None:
    """Case 18."""
    whole = attention_inputs(batch=2, queries=max(queries, 1), keys=max(keys, 1), sinks=True)
    query, key, value = whole.query[:batch, :, :queries], whole.key[:batch, :, :keys], whole.value[:batch, :, :keys]
    for seen in (RowRanges.all_keys(queries, keys), FullMask(torch.ones(1, 1, queries, keys, dtype=torch.bool))):
        call = replace(whole, query=query, key=key, value=value, visibility=seen)
        found = gradients(lambda c: method.attend(c, count=True)[0], call)
        assert found["output"].shape == (batch, 4, queries, 4)  # type: ignore[union-attr]
        assert all(part is not None and not part.any() for part in found.values())
    with pytest.raises(UsageError, match="k must be a whole number of at least 1"):
        replace(method, k=0)
