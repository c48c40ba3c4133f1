"""Where the time of the dense model goes."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from hf_sparsify.benchmark import shares
from hf_sparsify.benchmark.shares import Shares, shares_of
from hf_sparsify.benchmark.workload import workload
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.modules import attention_modules
from tiny_models import VOCABULARY, build


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by 1 whenever somebody looks."""

    def clock(device: Any) -> Any:
        ticking = count()
        return lambda: float(next(ticking))

    monkeypatch.setattr(shares, "clock", clock)


def tokens() -> torch.Tensor:
    return torch.arange(3, 15)[None] % VOCABULARY


def test_parts_of_the_time(ticks: None) -> None:
    model = build("llama")
    attention, layers = attention_modules(model), feed_forward_modules(model)
    found = shares_of(workload(model, "causal-lm", tokens(), 2), {attention[0].name, layers[0].name, layers[1].name})
    # A pass looks twice at the clock for each of 2 attentions and 2 down-projections, and once at its end: 9 ticks, of
    # which 1 is in each of the four.
    assert found["prefill"] == Shares(2 / 9, 2 / 9, 3 / 9)
    assert found["decode"] == Shares(4 / 17, 4 / 17, 6 / 17)
    assert found["prefill"].ceiling == pytest.approx(9 / 6)


def test_the_model_is_left_as_it_was() -> None:
    model = build("t5")
    shares_of(workload(model, "seq2seq-lm", tokens(), 2), set())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_that_is_not_torchs_own_is_not_known() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    found = shares_of(workload(model, "causal-lm", tokens(), 0), set())["prefill"]
    assert (found.attention, found.patched, found.ceiling) == (None, None, None)
    assert 0 < found.feed_forward < 1


def test_all_cross_attention_is_seen(ticks: None) -> None:
    model = build("bart")
    planned = {target.name for target in attention_modules(model) if target.kind == "cross"}
    found = shares_of(workload(model, "seq2seq-lm", tokens(), 1), planned)["decode"]
    assert found.attention is not None
    assert found.patched == pytest.approx(found.attention / 2)
