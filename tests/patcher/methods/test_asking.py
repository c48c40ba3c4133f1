"""Where tensors cannot be asked, methods give what they give on a CPU, and nothing looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from asking_nothing import Look, asking_nothing, no_looks
from definition import TableOf
from hf_sparsify.patcher.methods import AttentionInputs, TopK, TopKFeedForward, TopTheta, attend_rows
from hf_sparsify.patcher.methods.kept_keys import pack, unpack
from hf_sparsify.patcher.methods.top_k import keep_highest
from hf_sparsify.patcher.methods.top_k_feed_forward import largest
from hf_sparsify.patcher.thresholds import ModuleThresholds
from row_autograd import assert_equal, gradients
from row_oracle import THETA, Sparse, named, row_by_row, sparse_methods
from tiny_models import LAYOUTS, attention_inputs
from torch import Tensor

METHODS = [
    *sparse_methods(),
    *sparse_methods(compensation="sdc", min_length=4),
    *sparse_methods(compensation="sdc+vmc", v_mean="dropped", protect_first=1),
    TopK(keep=0.4, protect_recent=1),
]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"bias": True, "softcap": 2.0, "sinks": True},
    {"queries": 1, "keys": 9},
]


class Known(TableOf):
    """As row_oracle asks a table."""

    def dropped_at(self, head: int, length: int) -> float:
        return float(self.thresholds.lookup_dropped(torch.tensor([[[length]]]))[0, head, 0])


def table_for(method: Sparse) -> ModuleThresholds | None:
    """Rows of more than 6 keys have no threshold; some of the others keep fewer than min_keep."""
    if not isinstance(method, TopTheta):
        return None
    theta = torch.tensor([THETA[method.placement]] * 2).T + torch.tensor([0.06, 0.12])
    dropped = torch.tensor([[0.5, 0.9]] * 4)
    return ModuleThresholds(torch.tensor([3.0, 6.0]), theta, 3, 6, method.placement, dropped=dropped)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=named)
def test_every_method_equals_its_definition(method: Sparse, extra: dict[str, Any]) -> None:
    table = table_for(method)
    for layout in ("left", "full"):
        call = attention_inputs(layout, **extra)
        expected = row_by_row(call, method, None if table is None else Known(table))  # type: ignore[arg-type]
        with asking_nothing():
            out, counts = method.attend(call, thresholds=table, count=True)
        torch.testing.assert_close(out, expected.output, rtol=1e-9, atol=1e-9)
        assert counts is not None
        assert torch.equal(counts.kept, expected.kept.sum(-1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_rows_are_the_same(layout: str) -> None:
    call = attention_inputs(layout, bias=True)
    with asking_nothing():
        found = attend_rows(call)[0]
    torch.testing.assert_close(found, attend_rows(call)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [TopK(k=2), TopTheta(k=2), TopK(k=2, compensation="sdc+vmc")], ids=named)
def test_what_no_row_sees_leaves_no_trace(method: Sparse) -> None:
    """Keys and values of padding are NaN; a NaN that rows do see spoils those that it spoils on a CPU."""
    call, table = attention_inputs("left"), table_for(method)
    key, value = call.key.clone(), call.value.clone()
    key[1, :, :2] = value[1, :, :2] = torch.nan
    seen = call.key.index_fill(2, torch.tensor(4), torch.nan)
    for broken in (replace(call, key=key, value=value), replace(call, key=seen)):
        expected = method.attend(broken, thresholds=table)[0]
        with asking_nothing():
            found = method.attend(broken, thresholds=table)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("method", [TopK(k=2), TopTheta(k=2), TopK(k=2, compensation="sdc+vmc")], ids=named)
def test_gradients_are_the_same(method: Sparse, extra: dict[str, Any]) -> None:
    table = table_for(method)

    def attended(call: AttentionInputs) -> Tensor:
        return method.attend(call, thresholds=table)[0]

    call = attention_inputs("left", **extra)
    expected = gradients(attended, call)
    with asking_nothing():
        found = gradients(attended, call)
    assert_equal(found, expected, 1e-9)


@pytest.mark.parametrize("width", [7, 8192])
def test_ties_and_nan_are_chosen_alike(width: int) -> None:
    scores = torch.randn(1, 2, 5, width, generator=torch.Generator().manual_seed(width)).round()
    scores[0, 0, 0, 3] = scores[0, 1, 2, :2] = torch.nan
    scores[0, 1, 1] = -torch.inf
    rows_k = torch.minimum(torch.tensor([[[1, 2, 3, 4, 5]] * 2]), (scores != -torch.inf).sum(-1))
    with asking_nothing():
        found, bounded = keep_highest(scores, rows_k), keep_highest(scores, rows_k, most=5)
    assert torch.equal(found, keep_highest(scores, rows_k))
    assert torch.equal(bounded, found)
    tokens = scores.view(-1, width)
    with asking_nothing():
        places, kept = largest(tokens, 4, zeros=True), TopKFeedForward(k=4).mask(tokens)
    torch.testing.assert_close(kept, TopKFeedForward(k=4).mask(tokens), rtol=0, atol=0, equal_nan=True)
    own = largest(tokens.nan_to_num(nan=torch.inf), 4, zeros=True)
    assert torch.equal(places.sort().values, own.sort().values)


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_what_is_packed_comes_back(share: float) -> None:
    keep = torch.rand(3, 300, generator=torch.Generator().manual_seed(0)) < share
    with asking_nothing():
        packed = pack(keep)
        found = unpack(packed, keep.shape)
    assert len(packed) == 1  # bits
    assert torch.equal(found, keep)


@pytest.mark.parametrize("method", [TopK(k=2), TopTheta(k=2)], ids=named)
def test_on_a_cpu_a_look_would_be_seen(method: Sparse) -> None:
    with no_looks(), pytest.raises(Look):
        method.attend(attention_inputs("left"), thresholds=table_for(method))
