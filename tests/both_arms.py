"""One evaluation without files, as most tests want it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.results import judge, summarize
from hf_sparsify.evaluation.run import Contender, Evaluation, evaluate
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.evaluation.verdict.gate import Gate
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.binding.modules import attention_modules


def plan_for(loaded: LoadedModel, method: Any) -> dict[str, Any]:
    """A method on every attention module."""
    return {module.name: method for module in attention_modules(loaded.model)}


def both_arms(
    loaded: LoadedModel,
    items: ItemSet,
    method: Any,
    *,
    thresholds: Any = None,
    advance: Callable[[int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """The dense model against a plan, or one method on all its attention. options: those of TaskOptions."""
    plan = method if isinstance(method, Mapping) else plan_for(loaded, method)
    task = task_for(loaded, items, TaskOptions(**{"max_new_tokens": 5, **options}))
    return evaluate(loaded, [Contender(plan, thresholds)], task, advance=advance)[0]


def summary(evaluation: Evaluation, gate: Gate | None = None) -> dict[str, Any]:
    """What results.json says of it."""
    return summarize(evaluation, judge([evaluation], gate or Gate(), 0)[0], 0)


def answers(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The dense and the patched answer to every item."""
    return [(record.dense["answer"], record.patched["answer"]) for record in evaluation.records]


def distances(evaluation: Evaluation, name: str = "kl") -> list[float]:
    """How far patched is from dense, for every item."""
    return [record.distance[name] for record in evaluation.records]
