"""Top-k and top-theta by Triton: what is not finite, what is launched, what a GPU is asked for, a whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from hf_sparsify.patcher.binding import attention
from hf_sparsify.patcher.binding.patching import apply_plan, call_paths
from hf_sparsify.patcher.kernels import triton_means, triton_row_work, triton_rows
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges, TopK, TopTheta
from patched_models import close, everything, one_layer
from row_oracle import named
from tiny_models import inputs as model_inputs
from tiny_models import logits
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_needs import built
from triton_row_problems import DEVICE, attended, problem, table

METHODS = [
    TopK(k=4, compensation="sdc+vmc"),
    TopTheta(k=4, placement="max-relative", compensation="sdc+vmc", v_mean="dropped"),
    TopTheta(k=4, placement="pre-softmax", compensation="sdc"),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=named)


@each_method
def test_what_no_row_sees_changes_nothing(method: TopK | TopTheta) -> None:
    seen = RowRanges(torch.full((1, 2), 9), torch.full((1, 2), 30))
    inputs = problem(batch=1, visibility=seen)
    out, _ = attended(inputs, method, table(inputs, method))
    for hidden in (slice(0, 9), slice(30, None)):
        inputs.key[:, :, hidden] = torch.nan
        inputs.value[:, :, hidden] = torch.nan
    # Equal but for rounding: sums of values run through what is hidden, which counts as zeros where it is not finite.
    torch.testing.assert_close(attended(inputs, method, table(inputs, method))[0], out)


@each_method
def test_a_later_key_changes_no_earlier_row(method: TopK | TopTheta) -> None:
    inputs = problem(batch=1)
    out, _ = attended(inputs, method, table(inputs, method))
    inputs.key[:, :, -1] = torch.nan
    inputs.value[:, :, -1] = torch.nan
    again, _ = attended(inputs, method, table(inputs, method))
    torch.testing.assert_close(again[:, :, :-1], out[:, :, :-1])
    assert bool(again[:, :, -1].isnan().all())


@each_method
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_score_spoils_its_row_alone(method: TopK | TopTheta, broken: float) -> None:
    inputs = problem(batch=1)
    out, _ = attended(inputs, method, table(inputs, method))
    inputs.query[0, 1, 1, 0] = broken
    again, _ = attended(inputs, method, table(inputs, method))
    assert bool(again[0, 1, 1].isnan().all())
    again[0, 1, 1] = out[0, 1, 1]
    torch.testing.assert_close(again, out)


def test_a_value_that_is_not_finite_stays_where_it_is_kept() -> None:
    """A dropped one is nothing: it is multiplied by no weight."""
    inputs = problem(batch=1, group=1, queries=3, layout="all")
    inputs.query[..., 1:], inputs.key[..., 1:] = 0, 0
    inputs.query[0, 0, :, 0] = torch.tensor([1.0, -1.0, 1.0])
    inputs.key[0, 0, :, 0] = torch.arange(37.0)
    inputs.value[0, 0, 0, 2], inputs.value[0, 0, 36, 3] = torch.nan, torch.inf
    out, _ = attended(inputs, TopK(k=4))
    expected = torch.zeros(3, 16, dtype=torch.bool)
    expected[1, 2] = expected[0, 3] = expected[2, 3] = True
    assert torch.equal(~out[0, 0].isfinite(), expected)


class _Launches:
    """Stands for a kernel, and counts how often it is launched."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.count += 1

        return launch


KERNELS = {
    "score_rows": triton_row_work,
    "select_rows": triton_row_work,
    "weigh_rows": triton_row_work,
    "combine_rows": triton_row_work,
    "sum_values": triton_means,
}


@pytest.mark.parametrize(
    ("method", "queries", "launched"),
    [
        (TopTheta(k=4, placement="pre-softmax"), 5000, [0, 0, 1, 0, 0]),
        (TopTheta(k=4, compensation="sdc+vmc"), 5000, [1, 0, 1, 0, 0]),
        (TopTheta(k=4, compensation="sdc+vmc", placement="pre-softmax"), 1, [0, 0, 1, 1, 1]),
        (TopTheta(k=4, min_keep=2), 5000, [3, 3, 3, 3, 0]),
        (TopK(k=4, compensation="sdc+vmc"), 1, [1, 1, 1, 1, 1]),
    ],
    ids=named,
)
def test_nothing_waits_for_the_gpu(
    method: TopK | TopTheta, queries: int, launched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors have no numbers: whoever looks into one is told so. Scores are written down in three parts where
    exact selection may need them."""
    thresholds = table(problem(), method, shortest=1)
    if thresholds is not None:
        thresholds.longest = 10000
    kernels = [_Launches() for _ in KERNELS]
    for (name, module), kernel in zip(KERNELS.items(), kernels, strict=True):
        monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(triton_row_work, "SCORES", 2 * 2 * 2000 * 5008)
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key = torch.empty(2, 2, queries, 16), torch.empty(2, 1, 5000, 16)
        inputs = AttentionInputs(query, key, key, RowRanges.causal(queries, 5000))
        out, counts = triton_rows.attend(inputs, method, thresholds, count=queries > 1)
    assert out.shape == query.shape
    assert (counts is not None) == (queries > 1)
    assert [kernel.count for kernel in kernels] == launched


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_a_gpu(capability: int) -> None:
    """They need no more shared memory than common GPUs have, and keep what they work on in registers."""
    found = built("triton_row_calls", capability)
    assert {kernel["kernel"] for kernel in found} == set(KERNELS)
    for kernel in found:
        assert kernel["spilled"] <= 256, kernel


def test_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt and three generated tokens, as by torch."""
    model = one_layer("llama")
    apply_plan(model, everything(model, TopK(k=3, compensation="sdc+vmc")))
    model = model.to(DEVICE)
    call = {name: part.to(DEVICE) for name, part in model_inputs("llama", "left", length=6).items()}
    monkeypatch.setattr(attention, "kernel_of", lambda method, device: None)
    expected = logits(model, call), model.generate(**call, max_new_tokens=3, do_sample=False)
    monkeypatch.setattr(attention, "kernel_of", lambda method, device: triton_rows)
    found = logits(model, call), model.generate(**call, max_new_tokens=3, do_sample=False)
    close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert call_paths(model)["triton"] > 0
