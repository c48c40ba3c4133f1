"""A task of lm-evaluation-harness, which asks and scores by itself: what it says of every document, as our records.

Nothing here imports the harness (see evaluation.harness).
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from torch import Tensor

from ...errors import SparsifyError, UsageError
from ...patcher.binding.loading import LoadedModel
from ...patcher.meter import Meter
from ..items import ItemSet
from .base import Answer, Record, Task, TaskOptions, top_margin

MULTIPLE_CHOICE, LIKELIHOOD, ROLLING, GENERATE = (
    "multiple_choice",
    "loglikelihood",
    "loglikelihood_rolling",
    "generate_until",
)
# Where the documents of known tasks have their passages: several questions on one are no independent evidence.
PASSAGES = ("context", "passage", "article", "story", "paragraph")

Results = Mapping[str, Any]  # what lm_eval.evaluator.evaluate returns
Scores = dict[str, dict[str, float]]  # "metric,filter", as the harness writes it -> document -> score


@dataclass(frozen=True)
class Document:
    """One document of a task. document: as JSON; gold: the right answers in words; passage: "" if it has none."""

    id: str
    document: str
    gold: tuple[str, ...]
    choices: tuple[str, ...] = ()
    passage: str = ""
    kind: str = ""

    @property
    def group(self) -> str:
        """Documents on one passage are no independent evidence; without a passage each stands alone."""
        return self.passage or self.id

    def content(self) -> list[Any]:
        """What is asked and scored, without the id."""
        return [self.document, list(self.choices), list(self.gold)]

    def fields(self) -> dict[str, str]:
        """Nothing: the harness makes the prompts."""
        return {}


@dataclass(frozen=True)
class Scored:
    """The metrics that can be compared document by document.

    metrics: key -> short name. primary: what the verdict goes by. filter: whose answers are shown. right: see Task.
    """

    metrics: dict[str, str]
    primary: str
    filter: str
    right: str | None


class HarnessTask(Task):
    """One task of the harness, for one model; `compare_arms` makes the records."""

    name = "lm-evaluation-harness"
    kl_unit = None

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions, output_type: str, style: str) -> None:
        super().__init__(loaded, items, options)
        self.output_type, self.style = output_type, style
        self.max_new_tokens = options.max_new_tokens if output_type == GENERATE else None
        self.scored = Scored({}, "", "", None)
        self.first_prompt = ""

    @property
    def metrics(self) -> dict[str, str]:  # type: ignore[override]
        return self.scored.metrics

    @property
    def primary(self) -> str:
        return self.scored.primary

    @property
    def right(self) -> str | None:  # type: ignore[override]
        return self.scored.right

    def encode(self, item: Any) -> list[int] | None:
        """None: the harness makes the tokens."""
        return None

    def first_input(self, item: Any) -> str:
        return self.first_prompt

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        raise NotImplementedError("the harness runs its tasks itself")

    def score(self, record: Record, arm: str) -> dict[str, float]:
        found: dict[str, float] = record.answer(arm)["_scores"]
        return found

    def gold(self, item: Any) -> list[str]:
        return list(item.gold)

    def chance(self, items: Sequence[Any]) -> float:
        if self.output_type != MULTIPLE_CHOICE or not self.primary.startswith("acc"):
            return 0.0
        return sum(1 / max(1, len(item.choices)) for item in items) / len(items)

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        return []

    def settle(self, arms: Sequence[Results]) -> None:
        """Finds the metrics that all these arms can be compared by. UsageError if there is none for a verdict."""
        task = self.items.name
        scores = [item_scores(arm, task) for arm in arms]
        usable = [key for key in scores[0] if all(key in of_arm for of_arm in scores)]
        filters = list(dict.fromkeys(sample["filter"] for sample in arms[0]["samples"][task]))
        better = arms[0]["higher_is_better"].get(task, {})
        gated = [f"{metric},{kind}" for kind in filters for metric, higher in better.items() if higher is True]
        gated = [key for key in gated if key in usable]
        if not gated:
            raise UsageError(
                f"--harness {task}: none of its metrics ({', '.join(better) or 'it names none'}) gives each document a "
                "score from 0 to 1, the higher the better, so there is nothing to compare the models by"
            )
        binary = [key for key in gated if all(value in (0.0, 1.0) for arm in scores for value in arm[key].values())]
        names = {key: _short(key, filters, better) for key in sorted(usable, key=lambda key: key not in gated)}
        kind = gated[0].rpartition(",")[2]
        self.scored = Scored(names, gated[0], kind, gated[0] if gated[0] in binary else next(iter(binary), None))

    def compare_arms(self, dense: Results, patched: Results) -> list[Record]:
        """One record for each document. SparsifyError if the two arms were not asked the same."""
        arms = [self._samples(dense), self._samples(patched)]
        scores = [item_scores(arm, self.items.name) for arm in (dense, patched)]
        records = []
        for item in self.items.items:
            samples = [arm[item.id] for arm in arms]
            hashes = [asked_hash(sample) for sample in samples]
            if hashes[0] != hashes[1]:
                raise SparsifyError(
                    f"--harness {self.items.name}: the task asked the two models differently (document {item.id}), so "
                    "they cannot be compared: choose one that draws no examples of its own"
                )
            answers = [
                self._answer(item, sample) | {"_scores": {key: of_arm[key][item.id] for key in self.metrics}}
                for sample, of_arm in zip(samples, scores, strict=True)
            ]
            prompt = first_prompt(samples[0])
            self.first_prompt = self.first_prompt or prompt
            records.append(Record(item, hashes[0], len(self.tokenizer(prompt)["input_ids"]), *answers))
        return records

    def _samples(self, results: Results) -> dict[str, dict[str, Any]]:
        """The samples of the filter that is shown, by document."""
        samples = results["samples"][self.items.name]
        return {str(sample["doc_id"]): sample for sample in samples if sample["filter"] == self.scored.filter}

    def _answer(self, item: Document, sample: Mapping[str, Any]) -> Answer:
        """What a model said, as predictions.jsonl has it."""
        said = sample["filtered_resps"]
        if self.output_type == ROLLING:
            return {"log_likelihoods": [float(value) for value in said]}
        if self.output_type == LIKELIHOOD:
            return {"answer": bool(said[0][1]), "log_likelihoods": [float(value) for value, _ in said]}
        if self.output_type == MULTIPLE_CHOICE and item.choices:
            values = [float(value) for value, _ in said[: len(item.choices)]]
            answer: Answer = {"answer": item.choices[values.index(max(values))], "log_likelihoods": values}
            return answer | ({"margin": top_margin(values)} if len(values) > 1 else {})
        return {"answer": said[0] if isinstance(said[0], str) else json.dumps(said[0], default=str)}


def item_scores(results: Results, task: str) -> Scores:
    """The scores of each document under the metrics whose mean over documents is what the harness reports.

    Metrics of another kind are left out (perplexities, F1 over all documents), and those that go beyond 0 to 1.
    """
    found: dict[str, dict[str, Any]] = {}
    for sample in results["samples"][task]:
        for metric in sample["metrics"]:
            found.setdefault(f"{metric},{sample['filter']}", {})[str(sample["doc_id"])] = sample[metric]
    kept: Scores = {}
    for key, values in found.items():
        reported = results["results"][task].get(key)
        if not all(isinstance(value, numbers.Real | numpy.bool_) for value in [*values.values(), reported]):
            continue
        numbers_of = {document: float(value) for document, value in values.items()}
        mean = math.fsum(numbers_of.values()) / len(numbers_of)
        if math.isclose(mean, float(reported), abs_tol=1e-9) and all(0 <= v <= 1 for v in numbers_of.values()):
            kept[key] = numbers_of
    return kept


def asked_hash(sample: Mapping[str, Any]) -> str:
    """32 hex digits over all that a model was asked about a document."""
    return hashlib.sha256(json.dumps(sample["arguments"], default=str).encode()).hexdigest()[:32]


def first_prompt(sample: Mapping[str, Any]) -> str:
    """The first text that a model was given for a document."""
    return str(sample["arguments"][0][0])


def _short(key: str, filters: Sequence[str], better: Mapping[str, Any]) -> str:
    """A metric's name in tables: with its filter where there are several."""
    metric, _, kind = key.rpartition(",")
    notes = ([kind] if len(filters) > 1 else []) + (["lower is better"] if better.get(metric) is False else [])
    return f"{metric} ({', '.join(notes)})" if notes else metric
