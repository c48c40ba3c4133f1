"""Decoding with a static cache under torch.compile is recorded as CUDA graphs. Skipped without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families.cells import plan_for, tables_for
from families.every import EVERY
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import Method, TopK, TopKFeedForward, TopTheta
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, StaticCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ROOM = 32


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def decoded(model: PreTrainedModel, step: Any) -> Tensor:
    """Scores of eight tokens after a prompt."""
    ids = EVERY["llama"].inputs("none")["input_ids"].cuda()
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    model(ids, past_key_values=cache)
    found = []
    for number in range(8):
        mask = torch.zeros(len(ids), ROOM, dtype=torch.int64, device="cuda")
        mask[:, : ids.shape[1] + number + 1] = 1
        torch.compiler.cudagraph_mark_step_begin()
        found.append(step(ids[:, number : number + 1], attention_mask=mask, past_key_values=cache).logits.clone())
    return torch.cat(found, 1)


def patched(method: Method) -> PreTrainedModel:
    model = EVERY["llama"].build().cuda()
    plan = plan_for(model, method)
    apply_plan(model, plan, tables_for(plan))
    return model


@pytest.mark.parametrize("method", [TopK(k=3, compensation="sdc+vmc"), TopTheta(k=3), TopKFeedForward(k=1)], ids=str)
def test_steps_are_cuda_graphs_and_give_what_they_give_without(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph comes first, on a model that made no step before: what a step keeps would lie in the graph's memory."""
    monkeypatch.setattr("hf_sparsify.patcher.kernels.triton_feed_forward.LEAST_SAVED", 0)
    model, other = patched(method), patched(method)
    found = decoded(model, torch.compile(model, mode="reduce-overhead", fullgraph=True))
    expected = decoded(other, other)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert counters["inductor"]["cudagraph_skips"] == 0
