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
from ..generation import TopMargins, answer_mask, decoder_start, kl_divergence, padded_answers, transcribe_greedy
from ..items import ItemSet
from .asr import Transcription
from .base import Answer, TaskOptions

START = 4  # tokens that Whisper's decoder is given: start, language, task, no timestamps


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
        own = loaded.model.generation_config.max_length
        self.max_new_tokens = self.limit or own or getattr(loaded.model.config, "max_target_positions", None)
        if not hasattr(self.extractor, "n_samples"):
            self.batch_size = 1

    def check(self) -> None:
        super().check()
        positions = getattr(self.model.config, "max_target_positions", None)
        if self.limit is not None and positions is not None and self.limit + START > positions:
            raise UsageError(
                f"--max-new-tokens {self.limit} is too many: the model has {positions} positions, {START} of them for "
                "what says language and task"
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

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        return [{"kl": float(kl_divergence(p, q).mean()), "tokens": len(p)} for p, q in zip(*observed, strict=True)]

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """The sound with its text, as the model would see it while it writes that text."""
        if self.input_ids(item) is None:
            return []
        tokens = self.tokenizer(item.text)["input_ids"]
        start = decoder_start(self.model)
        seen = tokens[:-1] if tokens[0] == start or start is None else [start, *tokens[:-1]]
        return [self._extracted([item]) | {"decoder_input_ids": torch.tensor([seen], device=input_device(self.model))}]
