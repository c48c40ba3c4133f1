"""Rounds of contenders, and what is made of their times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_sparsify.benchmark import run
from hf_sparsify.benchmark.arms import DENSE, EAGER, PATCHED, Arms
from hf_sparsify.benchmark.run import LengthResult, measure, summary, with_min_length
from hf_sparsify.benchmark.workload import Workload
from hf_sparsify.patcher.methods import Clustered, TopK, TopKFeedForward
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.recipe import BaseModel, Recipe
from tiny_models import build

BASE = BaseModel("tiny", "causal-lm", "llama", "")


def measured(repeats: int = 3, length: int = 12) -> tuple[LengthResult, list[int]]:
    model = build("llama")
    plan = plan_model(model, TopK(k=2), TopKFeedForward(k=5))
    advanced: list[int] = []
    loaded: Any = SimpleNamespace(model=model, base=BASE)
    tokens = torch.arange(3, 3 + length)[None]
    result = measure(loaded, Arms(model, Recipe(BASE, plan)), tokens, 2, repeats, set(plan), advanced.append)
    return result, advanced


def test_every_contender_has_a_time_for_every_round() -> None:
    result, advanced = measured()
    assert set(result.seconds) == {DENSE, EAGER, PATCHED}
    assert {len(times) for phases in result.seconds.values() for times in phases.values()} == {3}
    assert sum(advanced) == 9
    # 2 attentions and 2 feed-forward layers in 3 rounds of a warm-up (3 passes) and of a run (3 passes).
    assert sum(result.calls.values()) == 4 * 3 * 6
    elements, activations = result.kept["kept_share"], result.kept["activations_kept_share"]
    assert elements is not None
    assert 0 < elements < 1
    assert activations == 5 / 40
    assert result.kept["cluster_scores_share"] is None


def test_slow_eager_attention_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model_run = Workload.run

    def slow(self: Workload, watch: Any = None) -> dict[str, float]:
        found = model_run(self, watch)
        eager = self.model.config._attn_implementation == "eager"
        return {phase: 100.0 if eager else seconds for phase, seconds in found.items()}

    monkeypatch.setattr(Workload, "run", slow)
    result, advanced = measured()
    assert len(result.seconds[EAGER]["prefill"]) == 1
    assert len(result.seconds[DENSE]["prefill"]) == 3
    assert sum(advanced) == 9


def test_eager_attention_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "free_bytes", lambda device: 1000)
    result, advanced = measured()
    assert set(result.seconds) == {DENSE, PATCHED}
    assert "free" in result.left_out[EAGER]
    assert sum(advanced) == 9


def faked(tokens: int, dense: list[float], patched: list[float]) -> LengthResult:
    result, _ = measured(1, tokens)
    result.seconds = {
        DENSE: {"prefill": dense, "decode": dense},
        PATCHED: {"prefill": patched, "decode": dense},
    }
    return result


def test_ratios_are_of_the_same_rounds() -> None:
    found = summary([faked(8, [2.0, 4.0, 6.0], [1.0, 2.0, 3.0])])
    entry = found["lengths"][0]["phases"]["prefill"]
    assert entry["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert entry["seconds"][DENSE]["median"] == 4.0
    assert entry["tokens_per_second"][PATCHED] == pytest.approx(6 / 2.0)
    assert found["break_even"] == {"prefill": 0.0, "decode": 0.0}


def test_break_even_over_lengths() -> None:
    found = summary([faked(8, [1.0], [2.0]), faked(32, [2.0], [1.0])])
    assert found["break_even"]["prefill"] == pytest.approx(16)
    assert found["sentences"][0].startswith("prefill at 32 tokens: 2.00x: faster; break-even about 16 tokens")


def test_a_length_for_all_attention_of_a_recipe() -> None:
    before = {"a": TopK(k=4)}
    plan = {"a": TopK(k=4), "b": Clustered(), "c": TopKFeedForward(k=3)}
    found = with_min_length(Recipe(BASE, plan, before_calibration=before), 100)
    assert [getattr(method, "min_length", None) for method in found.plan.values()] == [100, 100, None]
    assert found.before_calibration is not None
    assert found.before_calibration["a"].min_length == 100
    assert plan["a"].min_length == 0
