"""Speech recognition by models that label every frame: Wav2Vec2, HuBERT, WavLM and their kin with a CTC head."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.differences import TOLERANCE, difference
from ...patcher.meter import Meter
from ..items import ItemSet
from .asr import Transcription
from .base import Answer, TaskOptions

NOISE_FRAMES = 64


class CTC(Transcription):
    """The likeliest token of every frame, repeats and blanks removed; the KL divergence runs over the frames.

    Graves et al. 2006. Recordings are padded into batches only where that changes nothing, which is tried on noise: a
    model whose first normalisation runs over the whole sound (feat_extract_norm "group") hears them one by one.
    """

    decoding = "greedy CTC"
    kl_unit = "nats per frame"

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        if self.batch_size > 1 and not self._heeds_no_padding():
            self.batch_size = 1
        # log p of the batch that `predict` saw last, so that `observe` need not run the model again.
        self._seen: tuple[list[str], list[Tensor]] | None = None

    def unfit(self, item: Any) -> str | None:
        return "too short for one frame" if self._too_short(item) else super().unfit(item)

    def encode(self, item: Any) -> list[int] | None:
        return None if self._too_short(item) else super().encode(item)

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        log_probs = self._log_probs(batch)
        self._seen = ([item.id for item in batch], log_probs)
        answers = []
        for row in log_probs:
            best = row.topk(2, -1)
            text = self._text(best.indices[:, 0].tolist())
            answers.append({"answer": text, "margin": float((best.values[:, 0] - best.values[:, 1]).min())})
        return answers

    def observe(self, batch: Sequence[Any], dense: Sequence[Answer]) -> list[Tensor]:
        """log p of every frame, float32 [frames, vocabulary] for each recording."""
        seen, self._seen = self._seen, None
        return seen[1] if seen is not None and seen[0] == [item.id for item in batch] else self._log_probs(batch)

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        return [] if self.input_ids(item) is None else [self._extracted([item])]

    def _text(self, frames: list[int]) -> str:
        # Not skip_special_tokens: that takes the blanks away before repeats are merged ("hello" would be "helo").
        special = {*self.tokenizer.all_special_ids} - {getattr(self.tokenizer, "word_delimiter_token_id", None)}
        text: str = self.tokenizer.decode([self.tokenizer.pad_token_id if id in special else id for id in frames])
        return text

    def _log_probs(self, batch: Sequence[Any]) -> list[Tensor]:
        logits = self.model(**self.inputs(batch)).logits.float().log_softmax(-1).cpu()
        if len(batch) == 1:
            return [logits[0]]
        frames = self._frames([item.sound.samples_at(self.rate) for item in batch]).tolist()
        return [row[:count] for row, count in zip(logits, frames, strict=True)]

    def _frames(self, samples: list[int]) -> Tensor:
        counted: Tensor = self.model._get_feat_extract_output_lengths(torch.tensor(samples))
        return counted

    def _too_short(self, item: Any) -> bool:
        return self._counts_frames() and int(self._frames([item.sound.samples_at(self.rate)])[0]) < 1

    def _counts_frames(self) -> bool:
        """Whether the model says how many frames it makes of samples."""
        return self.model.main_input_name == "input_values" and hasattr(self.model, "_get_feat_extract_output_lengths")

    def _heeds_no_padding(self) -> bool:
        """Whether the model says the same of noise alone and padded behind, beside longer noise."""
        takes_mask = "attention_mask" in inspect.signature(self.model.forward).parameters
        if not (takes_mask and self._counts_frames() and getattr(self.extractor, "return_attention_mask", False)):
            return False
        draw = numpy.random.default_rng(0)
        long = draw.standard_normal(math.prod(self.model.config.conv_stride) * NOISE_FRAMES).astype(numpy.float32)
        short = long[: 3 * len(long) // 4]
        with torch.inference_mode():
            alone = self.model(**self._features([short])).logits
            padded = self.model(**self._features([short, long])).logits[:1, : alone.shape[1]]
        return difference(padded, alone) <= TOLERANCE[self.model.dtype]
