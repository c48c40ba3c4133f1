"""Generating models choose the answer that they find most likely: multiple choice, and labels as words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..datasets.base import LABELS
from ..generation import answer_log_probs, decoder_start, padded_answers
from ..inputs import PromptEncoder, position_limit
from ..items import ItemSet
from .base import Answer, Record, Task, TaskOptions, commonest_share, top_margin


class MultipleChoice(Task):
    """log p(choice | prompt), summed over the choice's tokens; the normalised one is divided by its characters.

    Both are what lm-evaluation-harness calls acc and acc_norm. The KL divergence is between the distributions over
    the choices.
    """

    name = "multiple-choice"
    metrics: ClassVar[dict[str, str]] = {"accuracy": "acc", "accuracy_norm": "acc norm"}
    kl_unit = "nats per question"
    prompts = True

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.encoder = PromptEncoder.for_model(
            loaded, items.dataset, options.template, options.shots, options.max_input_tokens
        )
        self.style = f"{self.encoder.style}, log-likelihood of every choice"
        self._parts: dict[str, tuple[list[int], list[list[int]]]] = {}

    @property
    def right(self) -> str:  # type: ignore[override]
        return self.primary

    def choices(self, item: Any) -> tuple[str, ...]:
        """What the model chooses from."""
        return self.items.dataset.words if self.items.dataset.task == LABELS else item.choices

    def encode(self, item: Any) -> list[int] | None:
        """The prompt, then every choice."""
        prompt, choices = self._tokenized(item)
        limit = position_limit(self.model)
        if limit is not None and self._longest(prompt, choices) > limit:
            return None
        return prompt + [token for choice in choices for token in choice]

    def first_input(self, item: Any) -> str:
        return self.encoder.prompt(item).text

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        parts = [self._tokenized(item) for item in batch]
        rows = [(prompt, choice) for prompt, choices in parts for choice in choices]
        # The cross-attention of a decoder is not told which of its rows are padding: one choice at a time.
        step = 1 if self.model.config.is_encoder_decoder else self.batch_size
        sums: list[float] = []
        for begin in range(0, len(rows), step):
            sums += self._log_likelihoods(rows[begin : begin + step])
        answers = []
        for item in batch:
            own, sums = sums[: len(self.choices(item))], sums[len(self.choices(item)) :]
            values = self._values(item, own)[self.primary]
            chosen = self.choices(item)[_best(values)]
            answers.append({"answer": chosen, "log_likelihoods": own, "margin": top_margin(values)})
        return answers

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        return [{"kl": kl_of(p["log_likelihoods"], q["log_likelihoods"])} for p, q in zip(dense, patched, strict=True)]

    def score(self, record: Record, arm: str) -> dict[str, float]:
        values = self._values(record.item, record.answer(arm)["log_likelihoods"])
        return {metric: float(_best(values[metric]) == record.item.label) for metric in self.metrics}

    def gold(self, item: Any) -> list[str]:
        return [self.choices(item)[item.label]]

    def chance(self, items: Sequence[Any]) -> float:
        """For labels what always saying the commonest scores."""
        if self.items.dataset.task == LABELS:
            return commonest_share([item.label for item in items])
        return sum(1 / len(self.choices(item)) for item in items) / len(items)

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """The prompt with the right choice."""
        if self.input_ids(item) is None:
            return []
        return [self.encoder.answered(item, decoder_start(self.model))]

    def _values(self, item: Any, sums: Sequence[float]) -> dict[str, list[float]]:
        """What each metric compares the choices by."""
        choices = self.choices(item)
        return {
            "accuracy": list(sums),
            "accuracy_norm": [value / max(1, len(choice)) for value, choice in zip(sums, choices, strict=True)],
        }

    def _tokenized(self, item: Any) -> tuple[list[int], list[list[int]]]:
        """The prompt and every choice, made once for all arms."""
        if item.id not in self._parts:
            choices = [self.encoder.continuation_ids(item, choice) for choice in self.choices(item)]
            self._parts[item.id] = self.encoder.token_ids(item), choices
        return self._parts[item.id]

    def _longest(self, prompt: list[int], choices: list[list[int]]) -> int:
        longest = max(map(len, choices))
        return max(len(prompt), longest) if self.model.config.is_encoder_decoder else len(prompt) + longest

    def _log_likelihoods(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """log p of every choice after its prompt, in one pass over rows of (prompt, choice)."""
        padded, mask = padded_answers([choice for _, choice in rows], input_device(self.model))
        log_probs = answer_log_probs(self.model, self.encoder.batch([prompt for prompt, _ in rows]), padded, mask)
        found = log_probs.gather(-1, padded.unsqueeze(-1)).squeeze(-1)
        return [float(found[row, : len(choice)].sum()) for row, (_, choice) in enumerate(rows)]


def kl_of(dense: Sequence[float], patched: Sequence[float]) -> float:
    """KL(dense || patched) of the distributions that are proportional to exp(values), in nats."""
    p, q = (torch.tensor(values, dtype=torch.float64).log_softmax(-1) for values in (dense, patched))
    return max(0.0, float((p.exp() * (p - q)).sum()))


def _best(values: Sequence[float]) -> int:
    """The place of the highest; the first among equals."""
    return max(range(len(values)), key=lambda index: values[index])
