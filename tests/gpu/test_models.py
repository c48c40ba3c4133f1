"""Patched models on a GPU give what they give on a CPU, and no attention call waits for it. Skipped without CUDA."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families.cells import plan_for, tables_for
from families.every import EVERY
from families.family import scores
from hf_sparsify.patcher import kernels
from hf_sparsify.patcher.binding import attention
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.kernels.triton_library import interpreted
from hf_sparsify.patcher.methods import Clustered, Method, TopK, TopKFeedForward, TopTheta
from torch import Tensor
from transformers import PreTrainedModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

METHODS: dict[str, Method] = {
    "top-k": TopK(k=3, compensation="sdc+vmc"),
    "top-theta": TopTheta(k=3),
    "feed-forward": TopKFeedForward(k=1),
}
CELLS = [(name, method) for name in ("llama", "t5", "bert") for method in METHODS.values()]


@pytest.fixture(params=["kernels", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By Triton kernels, where they take a call, small layers too, and in torch alone."""
    assert not interpreted()
    monkeypatch.setattr("hf_sparsify.patcher.kernels.triton_feed_forward.LEAST_SAVED", 0)
    if request.param == "torch":
        monkeypatch.setattr(kernels, "obstacle", lambda: "not wanted")
    return str(request.param)


def patched(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    plan = plan_for(model, method)
    apply_plan(model, plan, tables_for(plan))
    return model


def pair(name: str, method: Method) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same patched model on the CPU and on the GPU."""
    model = EVERY[name].build()
    return patched(copy.deepcopy(model), method), patched(model.cuda(), method)


def inputs(name: str, padding: str, device: torch.device) -> dict[str, Tensor]:
    return {key: tensor.to(device) for key, tensor in EVERY[name].inputs(padding).items()}


def scored(name: str, model: PreTrainedModel, padding: str = "right") -> Tensor:
    """Scores of what is no padding, on the CPU."""
    found = scores(model, inputs(name, padding, model.device)).cpu()
    return found[EVERY[name].real_rows(EVERY[name].inputs(padding), found)]


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize(("name", "method"), [*CELLS, ("bert", Clustered(clusters=3, k=3))], ids=str)
def test_scores_are_those_of_the_cpu(name: str, method: Method, padding: str, way: str) -> None:
    here, there = pair(name, method)
    torch.testing.assert_close(scored(name, there, padding), scored(name, here, padding), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_whole_rows_in_half_precision_are_as_near_as_dense_attention(name: str, dtype: torch.dtype, way: str) -> None:
    """Few keys would not do: rounding decides which of two near scores is kept."""
    model = EVERY[name].build()
    exact = scored(name, model)
    half = model.to("cuda", dtype)
    dense = (scored(name, half).float() - exact).abs().max()
    whole = (scored(name, patched(half, TopK(k=64))).float() - exact).abs().max()
    assert whole <= 2 * dense + 1e-3


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generation_gives_the_tokens_of_the_cpu(name: str, options: dict[str, Any], way: str) -> None:
    def written(model: PreTrainedModel) -> list[list[int]]:
        call = inputs(name, "left", model.device)
        prompt = {key: call[key] for key in ("input_ids", "attention_mask")}
        made = model.generate(**prompt, **options, do_sample=False, min_new_tokens=6, max_new_tokens=6, pad_token_id=0)
        return made.tolist()

    here, there = pair(name, METHODS["top-k"])
    assert written(there) == written(here)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever waits for the GPU inside the attention function raises RuntimeError."""
    attend = attention.attention_forward

    def watched(*arguments: Any, **keywords: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return attend(*arguments, **keywords)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patching:
        patching.setattr(attention, "attention_forward", watched)
        yield
    attention.register()


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize(
    ("name", "method"), [cell for cell in CELLS if not isinstance(cell[1], TopKFeedForward)], ids=str
)
def test_no_attention_call_waits(name: str, method: Method, padding: str, way: str, no_waiting: None) -> None:
    there = patched(EVERY[name].build().cuda(), method)
    assert scored(name, there, padding).isfinite().all()
