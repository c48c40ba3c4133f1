"""The measured operations: what is compared does the same work, thresholds keep what they are to, and a wrong result
shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hf_sparsify.benchmark.op_cases import Case, bidirectional, causal, decode, feed_forward_layer, length, prefill
from hf_sparsify.benchmark.op_inputs import attention, dense, queries_at, score_product, thresholds
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import TopTheta, attend_rows

needs_native = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

CASES: dict[str, Callable[[], Case]] = {
    "bidirectional": lambda: bidirectional(256, None, None),
    "causal": lambda: causal(256, None),
    "prefill": lambda: prefill(256, None),
    "GQA": lambda: decode(256, 6, 2, None, in_turn=False),
    "MHA": lambda: decode(256, 2, 2, None, in_turn=False),
    "feed-forward": lambda: feed_forward_layer(3, None, d_model=64, d_ff=128, k=16),
}


@needs_native
@pytest.mark.parametrize("name", CASES)
def test_arms_are_what_they_are_compared_with(name: str) -> None:
    case = CASES[name]()
    for arm in case.arms:
        checked = arm.check()
        errors = (checked.got.double() - checked.expected).abs().amax(-1)
        # Keys that tie within rounding may be others.
        assert errors.median() < 1e-5, arm.name
        assert (errors > 1e-4).float().mean() <= 0.05, arm.name
        assert checked.expected.abs().max() > 0.1
        arm.run()
    case.dense()
    case.least()


@needs_native
def test_what_is_kept_and_what_cannot_be_avoided() -> None:
    for arm in prefill(512, None).arms:
        checked = arm.check()
        assert checked.kept == pytest.approx(0.1, abs=0.01), arm.name
        assert checked.least == 0.5
    checks = (arm.check() for arm in decode(1000, 6, 2, None, in_turn=False).arms)
    sparse, kept_all, tenth, few, staged, _, of_rounded = checks
    assert sparse.kept == pytest.approx(0.1, abs=0.002)
    assert tenth.kept == pytest.approx(0.1, abs=0.01)
    # All keys, and the values that one of three heads keeps: a tenth at least, three at most.
    assert 1.1 / 2 <= (sparse.least or 0) <= 1.3 / 2
    assert (kept_all.kept, kept_all.least) == (1.0, None)
    # A key rounded to 8 bits takes 72 bytes instead of 256; few are read in full too.
    for checked in (staged, of_rounded):
        assert checked.kept == pytest.approx(0.064, abs=0.01)
        assert 72 / 256 / 2 < (checked.least or 0) < (few.least or 0)
    assert feed_forward_layer(2, None, d_model=64, d_ff=128, k=16).arms[0].check().kept == 16 / 128


@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_dense_attention(causal: bool) -> None:
    inputs = attention(40, 40, 4, 4, causal=causal)
    torch.testing.assert_close(dense(inputs, causal=causal), attend_rows(inputs)[0], rtol=1e-5, atol=1e-5)


def test_grouped_heads_share_keys() -> None:
    inputs = attention(1, 40, 6, 2)
    torch.testing.assert_close(dense(inputs), attend_rows(inputs)[0], rtol=1e-5, atol=1e-5)


def test_queries_keep_their_positions() -> None:
    inputs = attention(40, 40, 2, 2, causal=True)
    picked = torch.tensor([0, 7, 39])
    torch.testing.assert_close(attend_rows(queries_at(inputs, picked))[0], attend_rows(inputs)[0][:, :, picked])


def test_score_product_reaches_every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, computed = attention(1200, 1200, 2, 2), []
    real = torch.matmul
    run = score_product(inputs)
    monkeypatch.setattr(torch, "matmul", lambda a, b, out=None: computed.append(real(a, b).numel()))
    run()
    assert sum(computed) == 2 * 1200 * 1200


@pytest.mark.parametrize("placement", ["pre-softmax", "max-relative", "post-softmax"])
def test_thresholds_hold_at_every_length(placement: str) -> None:
    method = TopTheta(keep=0.1, placement=placement)
    inputs = attention(1024, 1024, 4, 4, causal=True)
    table = thresholds(inputs, method)
    _, counts = method.attend(inputs, thresholds=table, count=True)
    assert counts is not None
    for start, stop in ((256, 512), (512, 1024)):
        lengths = torch.arange(start + 1, stop + 1)
        share = counts.kept[..., start:stop].sum() / (4 * lengths.sum())
        assert float(share) == pytest.approx(0.1, abs=0.015)


def test_lengths_as_text() -> None:
    assert [length(1), length(500), length(4096), length(16384, "key")] == [
        "1 token",
        "500 tokens",
        "4k tokens",
        "16k keys",
    ]


@needs_native
def test_a_wrong_kernel_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = causal(128, None)
    arm = case.arms[0]
    from hf_sparsify.benchmark import op_cases

    attend = op_cases.rows.attend
    monkeypatch.setattr(
        op_cases.rows, "attend", lambda inputs, *args, **named: attend(replace(inputs, scale=0.2), *args, **named)
    )
    checked = arm.check()
    assert (checked.got.double() - checked.expected).abs().amax(-1).median() > 1e-3
