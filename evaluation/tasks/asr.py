"""Speech recognition: what the tasks of both kinds of model share, from sound to scored words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy
from torch import Tensor

from ...errors import SparsifyError
from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ..error_rates import accuracy, character_errors, normalizer_for, word_errors
from ..generation import kl_divergence
from ..items import ItemSet
from ..speech_extra import require_speech
from .base import Answer, Record, Task, TaskOptions


class Transcription(Task):
    """Words of speech, scored per recording as 1 - min(word error rate, 1); the error rates over all words and
    characters are kept beside that.

    decoding: how words are found, for `style`. SparsifyError for a model without a processor, or without what speech
    needs.
    """

    name = "asr"
    metrics: ClassVar[dict[str, str]] = {
        "word_accuracy": "word acc.",
        "character_accuracy": "char. acc.",
        "exact": "all right",
    }
    right = "exact"
    decoding: ClassVar[str]

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        require_speech()
        super().__init__(loaded, items, options)
        if loaded.extractor is None or loaded.tokenizer is None:
            raise SparsifyError(
                f"{loaded.base.id} has no processor that can be loaded: its folder needs a preprocessor_config.json or "
                "processor_config.json, and the files of its tokenizer"
            )
        self.extractor = loaded.extractor
        self.rate: int = self.extractor.sampling_rate
        said, self.normalized = normalizer_for(self.model, self.tokenizer)
        self.style = f"sound at {self.rate} Hz, {self.decoding}; compared after {said}"
        self._inputs: tuple[list[str], dict[str, Tensor]] = ([], {})

    def unfit(self, item: Any) -> str | None:
        return super().unfit(item) if self.normalized(item.text).strip() else "whose text has no words"

    def encode(self, item: Any) -> list[int] | None:
        """No tokens: what is heard is told by `read`. None for sound that is longer than the model can hear."""
        limit = getattr(self.extractor, "n_samples", None)  # Whisper's: it cuts and pads all sound to one length
        return None if limit is not None and item.sound.samples_at(self.rate) > limit else []

    def read(self, item: Any) -> tuple[str, int]:
        """The hash of the encoded sound, and how many samples the model hears."""
        return item.sound.sha256[:32], item.sound.samples_at(self.rate)

    def first_input(self, item: Any) -> str:
        return f"{item.sound.name}: {item.sound.samples_at(self.rate)} samples at {self.rate} Hz"

    def order(self, items: Sequence[Any]) -> list[Any]:
        """Longest first, as everywhere."""
        return sorted(items, key=lambda item: item.sound.samples_at(self.rate), reverse=True)

    def inputs(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """What the model hears: input_values [B, n] or input_features [B, ...], and a mask where its extractor makes
        one. The last batch is remembered, because both arms hear it."""
        names = [item.id for item in batch]
        if self._inputs[0] != names:
            self._inputs = (names, self._extracted(batch))
        return self._inputs[1]

    def _extracted(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        return self._features([item.sound.decoded(self.rate) for item in batch])

    def _features(self, sounds: Sequence[numpy.ndarray]) -> dict[str, Tensor]:
        # Whisper pads to its one length by itself; padding to the longest would undo that.
        padding = {} if hasattr(self.extractor, "n_samples") else {"padding": len(sounds) > 1}
        made = self.extractor(sounds, sampling_rate=self.rate, return_tensors="pt", **padding)
        device, dtype = input_device(self.model), self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in made.items()
            if name == self.model.main_input_name or name == "attention_mask"
        }

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        """observed: log p of every frame or token, [n, vocabulary] for each recording, by both models."""
        return [{"kl": float(kl_divergence(p, q).mean()), "tokens": len(p)} for p, q in zip(*observed, strict=True)]

    def score(self, record: Record, arm: str) -> dict[str, float]:
        gold, heard = self.normalized(record.item.text), self.normalized(record.answer(arm)["answer"])
        return {
            "word_accuracy": accuracy(word_errors(gold, heard)),
            "character_accuracy": accuracy(character_errors(gold, heard)),
            "exact": float(gold == heard),
        }

    def errors(self, record: Record, arm: str) -> dict[str, tuple[int, int]]:
        gold, heard = self.normalized(record.item.text), self.normalized(record.answer(arm)["answer"])
        return {"wer": word_errors(gold, heard), "cer": character_errors(gold, heard)}

    def gold(self, item: Any) -> list[str]:
        return [item.text]
