"""The transposed copy of a weight on a GPU, or interpreted: that it is what the weight is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.patcher.methods import TopKFeedForward
from torch import nn

pytest.importorskip("triton")

from hf_sparsify.patcher.kernels import triton_feed_forward as kernel
from hf_sparsify.patcher.kernels import triton_weight_rows
from hf_sparsify.patcher.kernels.triton_feed_forward import project
from hf_sparsify.patcher.kernels.triton_weight_rows import device_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (129, 129), (1, 9), (9, 1)], ids=str)
def test_a_change_of_any_row_or_column_is_seen(shape: tuple[int, int]) -> None:
    """Through .data, which leaves no trace."""
    weight = nn.Parameter(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE), requires_grad=False
    )
    hidden, k = torch.randn(1, shape[1]).to(DEVICE), max(1, shape[1] - 1)

    def right() -> bool:
        out = project(hidden, weight, None, k).cpu()
        return torch.allclose(out, TopKFeedForward(k=k).mask(hidden).cpu() @ weight.cpu().t(), rtol=1e-4, atol=1e-4)

    assert right()
    for part in (weight.data[0], weight.data[-1], weight.data[:, 0], weight.data[:, -1], weight.data):
        part += 3
        assert right()


def test_a_copy_stays_where_it_is_and_recorded_changes_of_one_element_are_seen() -> None:
    weight, hidden = torch.randn(40, 300, device=DEVICE), torch.zeros(1, 300, device=DEVICE)
    hidden[0, 5] = 1.0
    project(hidden, weight, None, 1)
    place = device_rows(weight).rows.data_ptr()
    for row in (0, 17, 39):
        weight[row, 5] += 1
        assert torch.equal(project(hidden, weight, None, 1)[0], weight[:, 5])
    assert device_rows(weight).rows.data_ptr() == place


def test_a_copy_is_up_to_date_after_a_launch_that_was_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hidden = torch.randn(40, 300, device=DEVICE), torch.ones(1, 300, device=DEVICE)
    copy = device_rows(weight)
    with monkeypatch.context() as patching:
        patching.setattr(kernel, "_select", raises)
        with pytest.raises(RuntimeError, match="does not start"):
            project(hidden, weight, None, 1)
    assert copy.is_behind(weight)
    with monkeypatch.context() as patching:
        patching.setattr(triton_weight_rows, "recording", lambda: True)
        project(hidden, weight, None, 1)
        assert copy.is_behind(weight)
    project(hidden, weight, None, 1)
    assert not copy.is_behind(weight)
    weight += 1
    assert copy.is_behind(weight)


def raises(*arguments: Any) -> Any:
    raise RuntimeError("the kernel does not start")


def test_another_stream_does_not_trust_a_copy_unless_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40, 300, device=DEVICE)
    project(torch.ones(1, 300, device=DEVICE), weight, None, 1)
    copy = device_rows(weight)
    assert not copy.is_behind(weight)
    monkeypatch.setattr(triton_weight_rows, "stream_of", lambda weight: 7)
    assert copy.is_behind(weight)
    monkeypatch.setattr(triton_weight_rows, "recording", lambda: True)
    assert not copy.is_behind(weight)
