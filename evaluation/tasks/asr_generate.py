"""Speech recognition by models that write what they hear: Whisper and other encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..generation import TopMargins, answer_mask, padded_answers, transcribe_greedy, transcript_start
from ..items import ItemSet
from .asr import Transcription
from .base import Answer, TaskOptions


class GeneratedTranscription(Transcription):
    """Greedy transcripts; the KL divergence runs along the dense one, which takes one more pass of each model.

    The language is what the model's generation config says, or what Whisper hears. Only Whisper, whose inputs all have
    one length, gets more than one recording at a time.
    """

    decoding = "greedy transcript"
    kl_unit = "nats per token"

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.limit = options.max_new_tokens
        self.positions: int | None = getattr(loaded.model.config, "max_target_positions", None)
        self.max_new_tokens = self.limit or loaded.model.generation_config.max_length or self.positions
        if not hasattr(self.extractor, "n_samples"):
            self.batch_size = 1

    def check(self) -> None:
        super().check()
        heard = next((item for item in self.items.items if self.unfit(item) is None), None)
        if self.limit is None or self.positions is None or heard is None:
            return
        start = len(self._start(heard))
        if self.limit + start > self.positions:
            raise UsageError(
                f"--max-new-tokens {self.limit} is too many: the model has {self.positions} positions, {start} of them "
                "for what its transcripts begin with"
            )

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        margins = TopMargins()
        start, written = transcribe_greedy(self.model, self.inputs(batch), self.limit, meter=meter, margins=margins)
        mask = answer_mask(self.model, written)
        tokens = [row[kept].tolist() for row, kept in zip(written, mask, strict=True)]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        told = zip(texts, start.tolist(), tokens, margins.smallest(mask), strict=True)
        return [
            {"answer": text.strip(), "answer_tokens": own, "margin": margin, "_start": first}
            for text, first, own, margin in told
        ]

    def observe(self, batch: Sequence[Any], dense: Sequence[Answer]) -> list[Tensor]:
        """log p before every token of the dense transcripts, float32 [tokens, vocabulary] for each recording."""
        device = input_device(self.model)
        before = [answer["_start"] + answer["answer_tokens"][:-1] for answer in dense]
        decoder, mask = padded_answers(before, device)
        logits = self.model(**self.inputs(batch), decoder_input_ids=decoder, decoder_attention_mask=mask.long()).logits
        log_probs = logits.float().log_softmax(-1).cpu()
        lengths = [(len(answer["_start"]), len(answer["answer_tokens"])) for answer in dense]
        return [row[start - 1 :][:count] for row, (start, count) in zip(log_probs, lengths, strict=True)]

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """The sound with its text, as the model would see it while it writes that text, cut to its positions."""
        if self.input_ids(item) is None:
            return []
        text = self.tokenizer(item.text, add_special_tokens=False)["input_ids"]
        seen = [*self._start(item), *text][: self.positions]
        return [self._extracted([item]) | {"decoder_input_ids": torch.tensor([seen], device=input_device(self.model))}]

    def _start(self, item: Any) -> list[int]:
        """What the decoder is given before it writes: for Whisper also language, task and "no timestamps"."""
        start: list[int] = transcript_start(self.model, self._extracted([item]))[0].tolist()
        return start
