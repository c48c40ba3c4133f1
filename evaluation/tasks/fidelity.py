"""Plain text, no labels: how well the patched model predicts the next token as the dense one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..generation import answer_log_probs, decoder_start, kl_divergence
from ..inputs import text_limit
from ..items import ItemSet
from .base import Answer, Record, Task, TaskOptions


class Fidelity(Task):
    """KL divergence, agreement of the likeliest token, and perplexity, at every token of a text but the first.

    An encoder-decoder model reads the first half of the text and predicts the second. Both arms' distributions have to
    be there at once, and they are too large to keep: nothing of the dense model is cached, and one text is read at a
    time. The dense model agrees with itself, so its agreement is 100 %.
    """

    name = "fidelity"
    metrics: ClassVar[dict[str, str]] = {"top1_agreement": "top-1 agreement", "next_token": "next token right"}
    right = None
    kl_unit = "nats per token"
    counted_when = "observe"

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.batch_size = 1
        self.limit = text_limit(loaded.model, loaded.tokenizer)
        self.style = "text as it is"

    def encode(self, item: Any) -> list[int] | None:
        ids: list[int] = self.tokenizer(item.text, truncation=self.limit is not None, max_length=self.limit)[
            "input_ids"
        ]
        return ids if len(ids) > 1 else None

    def first_input(self, item: Any) -> str:
        text: str = self.tokenizer.decode(self.input_ids(item) or [])
        return text

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        """Nothing by itself: the passes of `observe` say it all."""
        return [{} for _ in batch]

    def observe(self, batch: Sequence[Any], dense: Sequence[Answer]) -> list[Tensor]:
        """log p before every predicted token, [n, vocabulary] for each text."""
        found = []
        for item in batch:
            read, predicted = self._parts(item)
            found.append(answer_log_probs(self.model, self._inputs(read), self._tensor(predicted))[0])
        return found

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        tokens = [self._tensor(self._parts(item)[1])[0] for item in batch]
        return [compared(p, q, own) for p, q, own in zip(*observed, tokens, strict=True)]

    def score(self, record: Record, arm: str) -> dict[str, float]:
        agreement = 1.0 if arm == "dense" else record.distance["agreement"]
        return {"top1_agreement": agreement, "next_token": record.distance["right"][arm]}

    def support(self, metric: str) -> tuple[float, float]:
        """Nothing agrees with the dense model better than itself."""
        return (-100.0, 0.0) if metric == "top1_agreement" else (-100.0, 100.0)

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        ids = self.input_ids(item)
        if ids is None:
            return []
        if not self.model.config.is_encoder_decoder:
            return [self._inputs(ids)]
        read, predicted = self._parts(item)
        start = [token for token in [decoder_start(self.model)] if token is not None]
        return [self._inputs(read) | {"decoder_input_ids": self._tensor(start + predicted[:-1])}]

    def _parts(self, item: Any) -> tuple[list[int], list[int]]:
        """What is only read, and what is predicted."""
        ids = self.input_ids(item) or []
        cut = len(ids) // 2 if self.model.config.is_encoder_decoder else 1
        return ids[:cut], ids[cut:]

    def _inputs(self, ids: list[int]) -> dict[str, Tensor]:
        tokens = self._tensor(ids)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=input_device(self.model))


def compared(dense: Tensor, patched: Tensor, tokens: Tensor) -> dict[str, Any]:
    """The figures of one text from log-probabilities [n, V] and the tokens [n] that followed.

    kl: mean over tokens, in nats. agreement: share of tokens where both arms hold the same token for the likeliest.
    nll: mean -log p of what followed, in nats; right: share of tokens that were held for the likeliest; per arm.
    """
    arms = {"dense": dense, "patched": patched}
    best = {arm: log_probs.argmax(-1) for arm, log_probs in arms.items()}
    return {
        "kl": float(kl_divergence(dense, patched).mean()),
        "tokens": len(tokens),
        "agreement": _share(best["dense"] == best["patched"]),
        "nll": {arm: float(-p.gather(-1, tokens[:, None]).mean()) for arm, p in arms.items()},
        "right": {arm: _share(best[arm] == tokens) for arm in arms},
    }


def _share(true: Tensor) -> float:
    return float(true.float().mean())
