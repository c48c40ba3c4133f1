"""Peak memory of a pass."""

from __future__ import annotations

import ctypes
import gc
import sys
from types import SimpleNamespace

import pytest
import torch
from hf_sparsify.benchmark.arms import DENSE, Arms
from hf_sparsify.benchmark.memory import eager_bytes, free_bytes, peaks_of
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.recipe import BaseModel, Recipe
from tiny_models import build

BASE = BaseModel("tiny", "causal-lm", "llama", "")
MEGABYTE = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are set back on Linux alone")
def test_a_peak_is_found_above_the_model_though_it_is_gone_at_the_end() -> None:
    model = build("llama")
    loaded = SimpleNamespace(model=model, base=BASE)
    arms = Arms(model, Recipe(BASE, plan_model(model, TopK(k=2))))
    wasted = {16: 40 * MEGABYTE, 32: 80 * MEGABYTE}

    def waste(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        torch.zeros(wasted.get(kwargs["input_ids"].shape[1], 8), dtype=torch.uint8)

    model.register_forward_pre_hook(waste, with_kwargs=True)
    # What tests before have left behind would be given back in the middle of this one.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    peaks = peaks_of(loaded, arms, DENSE, torch.ones(1, 32, dtype=torch.int64), [16, 32], 0)  # type: ignore[arg-type]
    for length, peak in peaks.items():
        assert peak is not None
        assert wasted[length] * 0.9 < peak < wasted[length] * 1.5


def test_eager_attention_holds_all_scores() -> None:
    model = build("bert")
    assert eager_bytes(model, 2, 100) >= 2 * 4 * 100 * 100 * 4
    assert eager_bytes(model, 1, 200) == 4 * eager_bytes(model, 1, 100)
    assert eager_bytes(build("t5"), 1, 100) >= 4 * 100 * 100 * 4


def test_free_memory_is_a_number_of_bytes() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert free > MEGABYTE
    assert free_bytes(torch.device("mps")) is None
