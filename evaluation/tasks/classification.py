"""Models with a classification head: the label of one text or of a pair."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from ...errors import DataError
from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..inputs import accepted_inputs, text_limit
from ..items import ItemSet
from .base import Answer, Record, Task, TaskOptions, commonest_share, top_margin
from .multiple_choice import kl_of

logger = logging.getLogger(__name__)


class Classification(Task):
    """The label with the highest logit; the KL divergence is between the distributions over labels."""

    name = "classification"
    metrics: ClassVar[dict[str, str]] = {"accuracy": "acc"}
    right = "accuracy"
    kl_unit = "nats per text"

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.limit = text_limit(loaded.model, loaded.tokenizer)
        self.names = accepted_inputs(loaded.model, loaded.tokenizer)
        self.labels = items.dataset.labels
        self.outputs = matched_labels(loaded.model.config, self.labels)
        self.style = "text or pair of texts, as the tokenizer joins them"

    def encode(self, item: Any) -> list[int]:
        ids: list[int] = self._encoded([item])["input_ids"][0]
        return ids

    def first_input(self, item: Any) -> str:
        text: str = self.tokenizer.decode(self.encode(item))
        return text

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        logits = self.model(**self._batch(batch), use_cache=False).logits.float().cpu()[:, self.outputs]
        return [
            {"answer": self.labels[int(row.argmax())], "logits": row.tolist(), "margin": top_margin(row.tolist())}
            for row in logits
        ]

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        return [{"kl": kl_of(p["logits"], q["logits"])} for p, q in zip(dense, patched, strict=True)]

    def score(self, record: Record, arm: str) -> dict[str, float]:
        return {"accuracy": float(record.answer(arm)["answer"] == self.labels[record.item.label])}

    def gold(self, item: Any) -> list[str]:
        return [self.labels[item.label]]

    def chance(self, items: Sequence[Any]) -> float:
        """What always saying the commonest label scores."""
        return commonest_share([item.label for item in items])

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        return [self._batch([item])]

    def _encoded(self, batch: Sequence[Any], **options: Any) -> Any:
        first, *second = ([item.texts[part] for item in batch] for part in range(len(batch[0].texts)))
        return self.tokenizer(
            first, *second, truncation=self.limit is not None, max_length=self.limit, padding_side="right", **options
        )

    def _batch(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        encoded = self._encoded(batch, padding="longest", return_tensors="pt")
        return {name: encoded[name].to(input_device(self.model)) for name in self.names}


def matched_labels(config: Any, labels: Sequence[str]) -> list[int]:
    """The model's output for each label of the data set, by name; in order where the model's have no names of its own.

    DataError if the numbers of labels differ; a warning if names exist and do not match.
    """
    names = {int(index): str(name).lower().replace(" ", "_") for index, name in config.id2label.items()}
    if len(names) != len(labels):
        raise DataError(
            f"the model tells {len(names)} labels apart and the data has {len(labels)}: {', '.join(labels)}"
        )
    wanted = [label.lower().replace(" ", "_") for label in labels]
    if sorted(wanted) == sorted(names.values()):
        return [next(index for index, name in names.items() if name == label) for label in wanted]
    if not all(name.startswith("label_") for name in names.values()):
        logger.warning(
            "warning: the model calls its labels %s and the data set %s: taken in this order",
            ", ".join(names[index] for index in sorted(names)),
            ", ".join(labels),
        )
    return list(range(len(labels)))
