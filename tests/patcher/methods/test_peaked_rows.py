"""Case 36 of test_row_gradients: how far top-k attention is from dense where few keys hold most of the weight."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hf_sparsify.patcher.methods import AttentionInputs, RowRanges, TopK, attend_rows
from tiny_models import attention_inputs

LENGTH = 1024


def peaked() -> AttentionInputs:
    """Random queries, four times as long, of 64 elements."""
    call = attention_inputs("all", batch=1, heads=2, groups=2, queries=LENGTH, keys=LENGTH, width=64)
    return replace(call, query=call.query * 4, scale=0.125, visibility=RowRanges.all_keys(LENGTH, LENGTH))


def test_the_error_is_within_the_mass_that_is_dropped() -> None:
    call = peaked()
    dense, sparse = attend_rows(call)[0], TopK(k=64).attend(call)[0]
    weights = (call.query @ call.key.mT * call.scale).softmax(-1)
    mass = weights.topk(64).values.sum(-1)
    assert abs(float(mass.mean()) - 0.97) < 0.01
    assert abs(float((sparse - dense).norm() / dense.norm()) - 0.026) < 0.01
    largest = call.value.norm(dim=-1).amax(-1, keepdim=True)
    assert bool(((sparse - dense).norm(dim=-1) <= 2 * (1 - mass) * largest).all())


def test_the_error_falls_with_k_down_to_nothing() -> None:
    call = peaked()
    call = replace(call, query=call.query[:, :, :64], visibility=RowRanges.all_keys(64, LENGTH))
    dense = attend_rows(call)[0]
    errors = [float((TopK(k=2**i).attend(call)[0] - dense).norm() / dense.norm()) for i in range(11)]
    assert all(less < more for more, less in itertools.pairwise(errors))
    assert errors[-1] < 1e-12
