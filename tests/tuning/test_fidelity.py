"""How far candidates move the model, against what an evaluation of the same plans says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from hf_sparsify import LoadOptions
from hf_sparsify.evaluation.run import Contender, evaluate
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.patcher.binding.loading import load_model
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.tuning.fidelity import Candidate, measure_moved


@pytest.mark.parametrize("name", ["llama", "bert-qa", "bert"])
def test_it_is_the_kl_divergence_of_an_evaluation(name: str, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_language_models.save(name, tmp_path / name)), LoadOptions())
    tiny_language_models.save_questions(tmp_path / "q.jsonl", 5)
    task = task_for(loaded, load_items(str(tmp_path / "q.jsonl")), TaskOptions(batch_size=2, max_new_tokens=3))
    plans = [plan_model(loaded.model, TopK(keep=keep)) for keep in (1.0, 0.5, 0.1)]
    passes: list[int] = []
    moved = measure_moved(loaded, [Candidate(plan) for plan in plans], task, passes.append)
    judged = evaluate(loaded, [Contender(plan) for plan in plans], task)
    assert sum(passes) == 5 * 4
    if name == "bert":
        assert all(one.mean is None for one in moved)
        return
    for one, evaluation in zip(moved, judged, strict=True):
        records = sorted(record.distance["kl"] for record in evaluation.records)
        assert sorted(one.kl) == pytest.approx(records, rel=1e-3, abs=1e-7)
    means = [one.mean or 0.0 for one in moved]
    assert means[0] < 1e-5 < means[1] < means[2]
    assert moved[1].meter.total().summary()["kept_share"] == pytest.approx(0.5, abs=0.1)


def test_one_candidate_that_fails_is_given_up_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(str(tiny_language_models.save("llama", tmp_path / "llama")), LoadOptions())
    tiny_language_models.save_questions(tmp_path / "q.jsonl", 3)
    task = task_for(loaded, load_items(str(tmp_path / "q.jsonl")), TaskOptions(batch_size=2, max_new_tokens=2))
    compare, asked = type(task).compare, []

    def spoilt(*args: Any) -> Any:
        asked.append(args)
        kl = {1: math.nan}.get(len(asked), 0.5)
        return [distance | {"kl": kl} for distance in compare(*args)]

    monkeypatch.setattr(type(task), "compare", spoilt)
    passes: list[int] = []
    plan = plan_model(loaded.model, TopK(keep=0.5))
    first, second = measure_moved(loaded, [Candidate(plan), Candidate(plan)], task, passes.append)
    assert first.error == "its KL divergence from dense is nan"
    assert (second.error, second.kl) == (None, [0.5] * 3)
    assert (len(asked), sum(passes)) == (3, 3 * 3), "what was given up is not run again"
