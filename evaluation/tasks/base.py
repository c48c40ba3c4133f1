"""What all tasks of the evaluation share: records, options, and the class that a task derives from."""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from ...errors import UsageError, require_at_least_one
from ...patcher.binding.loading import LoadedModel
from ...patcher.meter import Meter
from ..items import Item, ItemSet

ARMS = ("dense", "patched")
DEFAULT_NEW_TOKENS = 32
TOO_LONG = "longer than what the model can read at once"

# What one arm said about one item, ready for JSON. "answer" is what people and the comparison of the arms look at;
# names that begin with "_" are working data, which the final predictions.jsonl leaves out.
Answer = dict[str, Any]


@dataclass(frozen=True)
class TaskOptions:
    """How a task asks. batch_size: the most items (or sequences) at once.

    max_new_tokens: the longest answer; None is DEFAULT_NEW_TOKENS, for speech what the model's own settings allow.
    template: a prompt template in place of the data set's own prompt. shots: answered examples before the question.
    max_input_tokens: where prompts are cut, if anywhere. UsageError for a number below 1.
    """

    batch_size: int = 8
    max_new_tokens: int | None = None
    template: str | None = None
    shots: tuple[Item, ...] = ()
    max_input_tokens: int | None = None

    def __post_init__(self) -> None:
        require_at_least_one(
            batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, max_input_tokens=self.max_input_tokens
        )


@dataclass
class Record:
    """One item under both arms. input_hash: of the tokens that the model reads. distance: of patched from dense."""

    item: Any
    input_hash: str
    tokens: int
    dense: Answer
    patched: Answer
    distance: dict[str, Any] = field(default_factory=dict)

    def answer(self, arm: str) -> Answer:
        """What an arm said."""
        return self.dense if arm == "dense" else self.patched

    @property
    def same_answer(self) -> bool | None:
        """Whether both arms gave the same answer; None for tasks without answers."""
        return self.dense["answer"] == self.patched["answer"] if "answer" in self.dense else None

    def to_dict(self) -> dict[str, Any]:
        """A line of predictions.jsonl while the run goes on."""
        return {
            "id": self.item.id,
            "input_sha256": self.input_hash,
            "tokens": self.tokens,
            "dense": self.dense,
            "patched": self.patched,
            "distance": self.distance,
        }

    @classmethod
    def from_dict(cls, item: Item, line: dict[str, Any]) -> Record:
        """The inverse of to_dict."""
        return cls(item, line["input_sha256"], line["tokens"], line["dense"], line["patched"], line["distance"])


class Task(ABC):
    """What a kind of model does with items. An object serves one evaluation or one calibration.

    name: in results.json. metrics: key in results.json -> short name in tables; per item each is from 0 to 1.
    right: the metric that says right (1) or wrong (0). kl_unit: what a record's distance["kl"] is counted in.
    counted_when: "predict" or "observe", the one that does the work, so that it is timed and what it keeps is counted.
    prompts: whether models are told what to do. style: how inputs are made, in words. max_new_tokens: the longest
    answer, None for tasks that do not generate.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
    right: ClassVar[str | None]
    kl_unit: ClassVar[str | None]
    counted_when: ClassVar[str] = "predict"
    prompts: ClassVar[bool] = False
    style: str
    max_new_tokens: int | None = None

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        """Raises what the task cannot work with."""
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.items = items
        self.options = options
        self.batch_size = options.batch_size
        self._input_ids: dict[str, list[int] | None] = {}

    @property
    def primary(self) -> str:
        """The metric that the verdict goes by: the data set's, or the task's first where it does not have that."""
        metric = self.items.dataset.metric
        return metric if metric in self.metrics else next(iter(self.metrics))

    def check(self) -> None:
        """UsageError or DataError if the options or the items cannot be evaluated; calibration does not ask."""
        if self.prompts:
            return
        if self.options.shots or self.options.template is not None:
            raise UsageError(f"--shots and --prompt-template are for models that are told what to do: {self.style}")
        if self.options.max_input_tokens is not None:
            raise UsageError(f"--max-input-tokens is for models that are told what to do: {self.style}")

    def input_ids(self, item: Any) -> list[int] | None:
        """All tokens that the model reads for an item; None if they do not fit the model's positions."""
        if item.id not in self._input_ids:
            self._input_ids[item.id] = self.encode(item)
        return self._input_ids[item.id]

    def unfit(self, item: Any) -> str | None:
        """Why an item is left out, in words that go on from "items"; None for one that is evaluated."""
        return TOO_LONG if self.input_ids(item) is None else None

    @abstractmethod
    def encode(self, item: Any) -> list[int] | None:
        """What input_ids remembers."""

    def read(self, item: Any) -> tuple[str, int]:
        """32 hex digits of what the model reads for an item, and its length in tokens (for sound in samples)."""
        tokens = self.input_ids(item) or []
        return input_hash(tokens), len(tokens)

    @abstractmethod
    def first_input(self, item: Any) -> str:
        """An item's complete input, as text."""

    def order(self, items: Sequence[Any]) -> list[Any]:
        """Items in the order of the batches. Longest first: little padding, and what does not fit fails at once."""
        return sorted(items, key=lambda item: len(self.input_ids(item) or []), reverse=True)

    @abstractmethod
    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        """The answers of the model as it is now, dense or patched. meter: the patched arm's."""

    def observe(self, batch: Sequence[Any], dense: Sequence[Answer]) -> Any:
        """What `compare` needs of the model as it is now beside its answers, such as output distributions."""
        return None

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        """How far patched is from dense, for each item. observed: by the dense and by the patched model."""
        return [{} for _ in batch]

    def finish(self, records: list[Record]) -> None:  # noqa: B027
        """Adds to all records, in the order of the items, what only all of them together give. Idempotent."""

    @abstractmethod
    def score(self, record: Record, arm: str) -> dict[str, float]:
        """Every metric of an arm's answer, from 0 to 1."""

    def totals(self, records: Sequence[Record], arm: str) -> dict[str, float]:
        """Every metric over records (one or more), in percent."""
        scores = [self.score(record, arm) for record in records]
        return {key: 100 * sum(score[key] for score in scores) / len(scores) for key in self.metrics}

    def errors(self, record: Record, arm: str) -> dict[str, tuple[int, int]]:
        """For each error rate over all items (wrong units / units): how many are wrong in this one, and of how many."""
        return {}

    def gold(self, item: Any) -> list[str]:
        """The right answers, in words."""
        return []

    def support(self, metric: str) -> tuple[float, float]:
        """The least and the most that patched - dense can be for one item, in points."""
        return (-100.0, 100.0)

    def chance(self, items: Sequence[Any]) -> float:
        """What guessing scores, from 0 to 1."""
        return 0.0

    @abstractmethod
    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """Inputs to calibrate on, one sequence each, without padding; none if the item does not fit. May run the model,
        which must not be patched."""


def input_hash(tokens: Sequence[int]) -> str:
    """32 hex digits of the SHA-256 of token ids."""
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:32]


def pack(tensor: Tensor) -> str:
    """A float tensor as text: base64 of its little-endian float32 values."""
    return base64.b64encode(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def unpack(text: str, *shape: int) -> Tensor:
    """The tensor of a packed text, float32."""
    values = numpy.frombuffer(base64.b64decode(text), dtype="<f4").astype(numpy.float32)
    return torch.from_numpy(values).reshape(*shape) if shape else torch.from_numpy(values)


def commonest_share(labels: Sequence[int]) -> float:
    """The share of the commonest of some labels."""
    return max(Counter(labels).values()) / len(labels)


def top_margin(values: Sequence[float]) -> float:
    """How far the highest of two or more values is above the second."""
    first, second, *_ = sorted(values, reverse=True)
    return first - second
