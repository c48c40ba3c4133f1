"""What is measured on a GPU, in small on whatever is there: the ways do the same work, and the bytes are those of the
definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_sparsify.benchmark import gpu_cases, gpu_dense
from hf_sparsify.benchmark.gpu_cases import GpuCase, Setup, cases, clustered, decode, layer
from hf_sparsify.benchmark.gpu_dense import EAGER, FLEX, SDPA, eager, flex
from hf_sparsify.benchmark.gpu_ops import errors
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.kernels import KERNELS
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, TopK, TopTheta, attend_rows

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

SETUP = Setup(torch.device("cpu"), torch.float32, heads=4, groups=2, width=8, clusters=Clustered(clusters=4, k=3))
CASES: dict[str, Callable[[], GpuCase]] = {
    "decode": lambda: decode(SETUP, 2, 512, 0.1),
    "post-softmax decode": lambda: gpu_cases.decode_by_all_scores(SETUP, 2, 512, TopTheta(keep=0.1)),
    "top-k decode": lambda: gpu_cases.decode_by_all_scores(SETUP, 2, 512, TopK(k=64)),
    "threshold prefill": lambda: gpu_cases.threshold_prefill(SETUP, 2, 128),
    "top-k prefill": lambda: gpu_cases.top_k_prefill(SETUP, 2, 128),
    "clustered": lambda: clustered(SETUP, 2, 64),
    "feed-forward": lambda: layer(SETUP, 1, 16, 64),
}


def plain(inputs: AttentionInputs, *, causal: bool) -> Any:
    """In place of the flash backend, which a CPU has only in another form."""
    return attend_rows(inputs)[0]


@pytest.fixture(autouse=True)
def as_a_cpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flash backend, and without compiling."""
    monkeypatch.setattr(gpu_cases, "flash", plain)
    monkeypatch.setattr(gpu_dense, "compiled", lambda function: function)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", CASES)
def test_ours_is_right_and_every_way_runs(name: str) -> None:
    case = CASES[name]()
    if case.checked is not None:
        assert errors(case.checked)[1] == 0
        assert case.checked.expected.abs().max() > 0.01
    else:
        assert name == "clustered"
    case.ours()
    for run in case.others.values():
        run()


def test_bytes_of_a_decoding_step_are_all_keys_and_the_values_that_a_group_wants() -> None:
    case = decode(SETUP, 3, 2000, gpu_cases.VALUE_SHARE)
    keys = 3 * 2 * 2000 * 8 * 4
    values = case.moved / keys - 1
    assert values == pytest.approx(1 - (1 - gpu_cases.VALUE_SHARE) ** 2, abs=0.01)  # two heads a group here
    assert case.name == f"threshold decode, pre-softmax, {values:.0%} of V rows"
    assert case.checked is not None
    assert case.checked.kept == pytest.approx(gpu_cases.VALUE_SHARE, abs=0.002)


def test_work_of_the_others() -> None:
    assert CASES["clustered"]().moved == 4 * (2 * 2 * 4 * 64 * 8 + 2 * 2 * 2 * 64 * 8)
    assert CASES["clustered"]().multiplied == 4 * 2 * 4 * (4 * 64 + 64 * 3) * 8
    assert CASES["feed-forward"]().moved == 4 * 16 * (64 + 4)
    assert layer(SETUP, 16, 16, 64).moved == 4 * 16 * (64 + 64)  # no more rows than there are
    prefill = CASES["top-k prefill"]()
    assert prefill.multiplied == 2 * 4 * 128 * 128 * 8 * (1 + 64 / 128)


def test_floors_hold_from_16k_on() -> None:
    found = {}
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(gpu_cases, "LONG", 64)
        for tokens in (32, 64):
            found[tokens] = [
                decode(SETUP, 1, tokens, gpu_cases.VALUE_SHARE).floor,
                decode(SETUP, 1, tokens, 0.1).floor,
                clustered(SETUP, 1, tokens).floor,
            ]
    assert found == {32: [None] * 3, 64: [1.5, None, 3.0]}
    assert [layer(SETUP, tokens, 16, 64).floor for tokens in (1, 16)] == [1.4, None]
    assert gpu_cases.LONG == 16384


def test_every_operation_is_there_at_every_length_and_batch() -> None:
    whole = [name for name, _ in cases(SETUP, quick=False)]
    assert len(whole) == 4 * 2 * 7 + 2
    for expected in ("threshold decode, 128k tokens, batch 8", "clustered, 4k tokens, batch 1"):
        assert expected in whole
    assert len([*cases(SETUP, quick=True)]) == 7 + 2


@pytest.mark.parametrize("causal", [False, True])
def test_eager_is_dense_attention(causal: bool) -> None:
    inputs = SETUP.attention(2, 40, 40, causal=causal)
    torch.testing.assert_close(eager(inputs, causal=causal), attend_rows(inputs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_drops_what_ours_drops(causal: bool) -> None:
    inputs = SETUP.attention(1, 150, 150, causal=causal)
    method = gpu_cases.TopTheta(keep=0.5, placement="pre-softmax")
    table = gpu_cases._table(inputs, method, 0.5)
    out = flex(inputs, table.theta[:, -1], causal=causal)()
    table = type(table)(table.lengths[-1:], table.theta[:, -1:], 1, 150, placement="pre-softmax")
    expected, _ = method.attend(inputs, thresholds=table)
    # FlexAttention keeps no highest score where none exceeds the threshold.
    same = (out - expected).abs().amax(-1) < 1e-4
    assert same[..., 20:].all()
    assert not torch.allclose(expected[..., 20:, :], eager(inputs, causal=causal)[..., 20:, :], atol=1e-2)


def test_a_call_that_runs_in_torch_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases, "kernel_of", lambda method, device: None)
    with pytest.raises(SparsifyError, match=r"runs in torch \(no kernel\): there is nothing to measure"):
        CASES["decode"]()
    monkeypatch.setattr(gpu_cases, "kernel_of", lambda method, device: KERNELS[type(method)])
    assert {SDPA, FLEX, EAGER} == set(CASES["decode"]().others)
