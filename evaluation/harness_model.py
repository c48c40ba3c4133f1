"""The model that lm-evaluation-harness asks. It needs the extra lm-eval: only evaluation.harness imports this."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import UsageError
from ..patcher.binding.loading import LoadedModel
from ..patcher.meter import Meter
from .generation import cache_of, eos_tokens

# A stop text may be written with more tokens than the tokenizer would take for it.
SPARE_TOKENS = 2


class HarnessModel(HFLM):
    """The harness's own model class on a loaded model, so that scores are what the harness itself would report.

    What differs gives larger batches the scores and counts of a batch of one: padding is masked, encoders are padded
    behind, a sequence ends at its own stop text, and the meter is told of it. And max_gen_toks is obeyed by every
    model. Before each arm comes `begin`; after it there are seconds, cut (requests whose beginning did not fit the
    model) and in_model (an error came out of the model, not out of the task).
    """

    _device: torch.device
    batch_size_per_gpu: int

    def __init__(self, loaded: LoadedModel, batch_size: int, advance: Callable[[int], None] | None) -> None:
        backend = "seq2seq" if loaded.base.task == "seq2seq-lm" else "causal"
        super().__init__(pretrained=loaded.model, backend=backend, tokenizer=loaded.tokenizer, batch_size=batch_size)
        if self._device.type == "meta":  # weights on disk: the hooks of Accelerate move inputs to where they belong
            self._device = torch.device("cpu")
        self.rows: frozenset[tuple[int, ...]] = frozenset()
        self.cache_hook = _Progress(advance)
        self.begin(None, 0)

    def begin(self, meter: Meter | None, documents: int) -> None:
        """A new arm: what it keeps is counted by `meter`; it is asked about so many documents."""
        self.meter = meter
        self.seconds, self.cut, self.in_model = 0.0, 0, False
        self.cache_hook.begin(documents)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        with self._asking(requests, self._likelihood_batch()):
            return super().loglikelihood(requests, True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        with self._asking(requests, self._likelihood_batch()):
            return super().loglikelihood_rolling(requests, True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        for request in requests:
            most = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if self.backend == "causal" and most >= self.max_length:
                raise UsageError(
                    f"--harness {request.task_name}: it asks for {most} new tokens, and the model reads "
                    f"{self.max_length} in all: set a smaller max_gen_toks in the task's generation_kwargs"
                )
        with self._asking(requests, self.batch_size_per_gpu):
            return super().generate_until(requests, True)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        cut = sum(len(self.tok_encode(string)) > left_truncate_len for string in strings) if left_truncate_len else 0
        self.cut += cut
        if self.backend == "seq2seq" and not cut:
            # An encoder that counts positions from the first column would read a padded text at other places.
            padding_side = "right"
        encoded: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        return encoded

    def _likelihood_batch(self) -> int:
        """The cross-attention of a decoder is not told which of its rows are padding: one request at a time."""
        return 1 if self.backend == "seq2seq" else self.batch_size_per_gpu

    @contextmanager
    def _asking(self, requests: Sequence[Any], batch_size: int) -> Iterator[None]:
        """Times what the harness asks of the model inside the block, and remembers whether an error came from there."""
        usual, start = self.batch_size_per_gpu, time.perf_counter()
        self.batch_size_per_gpu = batch_size
        self.cache_hook.expect(len(requests))
        self.in_model = True
        try:
            yield
            self.in_model = False
        finally:
            self.batch_size_per_gpu = usual
            self.seconds += time.perf_counter() - start

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        reads = self.max_length + (self.backend == "causal")  # the last token is only predicted
        texts = [
            list(context) + list(target) if self.backend == "causal" else list(context)
            for _, context, target in requests
        ]
        self.cut += sum(len(text) > reads for text in texts)
        self.rows = frozenset(tuple(text[-reads:][:-1]) for text in texts)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, True, override_bs)
        return found

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if self.backend != "causal":
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
            return logits
        # The harness pads behind with 0 and gives no mask: harmless for causal rows, but padding would be counted.
        mask = torch.ones_like(inps)
        for row, ids in enumerate(inps.tolist()):
            mask[row, self._length(ids) :] = 0
        with torch.no_grad():
            logits = self.model(input_ids=inps, attention_mask=mask).logits
        return logits

    def _length(self, ids: list[int]) -> int:
        """How many of a padded row's tokens were asked for; a real token may be 0, too."""
        shortest = max((place for place, token in enumerate(ids, start=1) if token), default=1)
        lengths = range(len(ids), shortest - 1, -1)
        return next((length for length in lengths if tuple(ids[:length]) in self.rows), len(ids))

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        # As max_length the limit would lose to a generation_config's max_new_tokens, and an encoder-decoder model's
        # answers do not hold the context.
        new_tokens = max_length - context.shape[1]
        if new_tokens < 1:
            raise UsageError(
                f"--harness: max_length {max_length} in a task's generation_kwargs leaves no room behind a prompt of "
                f"{context.shape[1]} tokens: set max_gen_toks instead"
            )
        if not options.get("do_sample"):
            options.pop("temperature", None)
        beams = options.get("num_beams") or self.model.generation_config.num_beams or 1
        prompt = 1 if self.backend == "seq2seq" else context.shape[1]
        ends = _Ends(self, stop, prompt, self.meter if beams == 1 else None)
        try:
            sequences: Tensor = self.model.generate(
                input_ids=context,
                max_new_tokens=new_tokens,
                stopping_criteria=StoppingCriteriaList([ends]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **cache_of(self.model, self.model.generation_config, prompt + new_tokens),
                **options,
            )
        finally:
            if self.meter is not None:
                self.meter.active = None
        return sequences


class _Ends(StoppingCriteria):
    """Ends each sequence of a batch at its own stop text, and tells the meter.

    The harness's own criterion goes on until all have met theirs; it cuts the answers there afterwards.
    """

    def __init__(self, lm: HarnessModel, stop: Sequence[str], start: int, meter: Meter | None) -> None:
        self.stop = [text for text in stop if text]
        self.start, self.meter, self.tokenizer = start, meter, lm.tokenizer
        lengths = [len(lm.tokenizer.encode(text, add_special_tokens=False)) for text in self.stop]
        self.window = max(lengths, default=0) + SPARE_TOKENS
        self.eos = eos_tokens(lm.model)
        self.active: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -self.window :])
        met = [any(stop in text for stop in self.stop) for text in texts]
        ended = torch.tensor(met, device=input_ids.device)
        ended |= torch.isin(input_ids[:, -1], self.eos.to(input_ids.device))
        self.active = ~ended if self.active is None else self.active & ~ended
        if self.meter is not None:
            self.meter.active = self.active
        return ended


class _Progress:
    """Where the harness reports every answered request: passed on as documents done."""

    def __init__(self, advance: Callable[[int], None] | None) -> None:
        self.advance = advance
        self.begin(0)

    def begin(self, documents: int) -> None:
        self.documents, self.told = documents, 0
        self.requests, self.done = 0, 0

    def expect(self, requests: int) -> None:
        """So many more requests will come."""
        self.requests += requests

    def add_partial(self, attribute: str, request: Any, answer: Any) -> None:
        """One request is answered."""
        self.done += 1
        documents = min(self.documents, self.documents * self.done // max(1, self.requests))
        if self.advance is not None and documents > self.told:
            self.advance(documents - self.told)
            self.told = documents
