"""Greedy answers, and the output distributions along a given answer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..errors import UsageError
from ..patcher.binding.growing_cache import cache_argument, growing_cache
from ..patcher.meter import Meter


class _EndedSequences(StoppingCriteria):
    """Tells the meter which sequences of a batch have ended, so that what they compute after that is not counted."""

    def __init__(self, meter: Meter, eos: Tensor) -> None:
        self.meter = meter
        self.eos = eos
        self.start: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        ended = torch.isin(input_ids[:, self.start :], self.eos.to(input_ids.device)).any(-1)
        self.meter.active = ~ended
        return torch.zeros_like(ended)


class _AtOnce(StoppingCriteria):
    """Ends every sequence after its first token."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)


class TopMargins(LogitsProcessor):
    """Remembers at every step how far each sequence's best token was ahead of the second, in nats: [B] a step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.float().topk(2, -1).values
        self.steps.append(best[:, 0] - best[:, 1])
        return scores

    def smallest(self, mask: Tensor) -> list[float]:
        """Each sequence's smallest margin over the tokens of its answer; mask: bool [B, m]."""
        return torch.stack(self.steps, 1).masked_fill(~mask, torch.inf).amin(1).tolist()


def generate_greedy(
    model: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    pad_token_id: int | None,
    meter: Meter | None = None,
    margins: TopMargins | None = None,
) -> Tensor:
    """New tokens, int64 [B, m]: what follows the prompt, or the start token of an encoder-decoder model."""
    config = _greedy_config(model)
    config.update(max_length=None, max_new_tokens=max_new_tokens, pad_token_id=pad_token_id)
    config.update(return_dict_in_generate=False)
    prompt = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    with _ended(meter, model) as criteria:
        sequences = model.generate(
            **inputs,
            **cache_of(model, config, prompt + max_new_tokens),
            generation_config=config,
            stopping_criteria=criteria,
            logits_processor=LogitsProcessorList([] if margins is None else [margins]),
        )
    return sequences[:, prompt:]


def transcribe_greedy(
    model: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int | None,
    meter: Meter | None = None,
    margins: TopMargins | None = None,
    stopping: Sequence[StoppingCriteria] = (),
) -> tuple[Tensor, Tensor]:
    """What an encoder-decoder model writes of sound: the tokens that its decoder is given, int64 [B, s] (Whisper's say
    language and task), and new tokens, int64 [B, m].

    max_new_tokens: None is what the model's generation config says, or as many as it has positions for.
    """
    config = _greedy_config(model)
    if max_new_tokens is not None:
        config.update(max_length=None, max_new_tokens=max_new_tokens)
    elif config.max_length is None:
        config.update(max_length=getattr(model.config, "max_target_positions", None))
    # Whisper keeps the decoder's start to itself unless it is asked for a single call and all of its output.
    config.update(return_dict_in_generate=True)
    config.force_unique_generate_call = True
    steps = margins or TopMargins()
    with _ended(meter, model) as criteria:
        sequences = model.generate(
            **inputs,
            **cache_of(model, config, 0),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([*criteria, *stopping]),
            logits_processor=LogitsProcessorList([steps]),
        ).sequences
    start = sequences.shape[1] - len(steps.steps)
    return sequences[:, :start], sequences[:, start:]


def transcript_start(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The tokens that the decoder is given before it writes, int64 [B, s]. Only `generate` knows: one step runs."""
    return transcribe_greedy(model, inputs, None, stopping=[_AtOnce()])[0]


def _greedy_config(model: Any) -> Any:
    """A model's generation config for the likeliest token at every step."""
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, num_return_sequences=1)
    return config


@contextmanager
def _ended(meter: Meter | None, model: Any) -> Iterator[StoppingCriteriaList]:
    """The criterion that tells a meter which sequences have ended; afterwards all count again."""
    try:
        yield StoppingCriteriaList([] if meter is None else [_EndedSequences(meter, eos_tokens(model))])
    finally:
        if meter is not None:
            meter.active = None


def cache_of(model: Any, config: Any, tokens: int) -> dict[str, Any]:
    """An argument for `generate`: an empty cache with room for so many tokens; none where config asks for another."""
    if config.cache_implementation is not None or config.use_cache is False:
        return {}
    cache = growing_cache(model, tokens)
    return {} if cache is None else {cache_argument(model): cache}


def decoder_start(model: Any) -> int | None:
    """The token that an encoder-decoder model's answers begin with; None for other models."""
    if not model.config.is_encoder_decoder:
        return None
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in (model.generation_config, model.config):
            token: int | None = getattr(config, name, None)
            if token is not None:
                return token
    return None


def eos_tokens(model: Any) -> Tensor:
    """The tokens that end a sequence, int64 [0 or more]."""
    eos = model.generation_config.eos_token_id
    return torch.tensor([eos] if isinstance(eos, int) else list(eos or []), dtype=torch.int64)


def answer_mask(model: Any, answers: Tensor) -> Tensor:
    """bool like answers [B, m]: the tokens up to and including the first that ends the sequence."""
    ended = torch.isin(answers, eos_tokens(model).to(answers.device)).to(torch.int64)
    return ended.cumsum(-1) - ended == 0


def padded_answers(answers: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of answers, padded behind with 0, and which are real: int64 and bool [B, m]."""
    rows = [torch.tensor(answer, dtype=torch.int64) for answer in answers]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens.to(device), (torch.arange(tokens.shape[1]) < lengths[:, None]).to(device)


def answer_log_probs(
    model: Any, inputs: dict[str, Tensor], answers: Tensor, answer_mask: Tensor | None = None
) -> Tensor:
    """log p over the vocabulary before every answer token, float32 [B, m, vocabulary], in one full pass.

    answers: int64 [B, m], as generate_greedy returns them; answer_mask: bool [B, m], False for padding behind them.
    """
    if answer_mask is None:
        answer_mask = torch.ones_like(answers, dtype=torch.bool)
    before = answer_mask[:, 1:]  # an answer's last token predicts nothing
    if model.config.is_encoder_decoder:
        start = decoder_start(model)
        if start is None:
            raise UsageError("the model does not say which token its answers begin with (decoder_start_token_id)")
        decoder = torch.cat([answers.new_full((len(answers), 1), start), answers[:, :-1]], 1)
        mask = torch.cat([before.new_ones((len(answers), 1)), before], 1).to(inputs["attention_mask"].dtype)
        logits = model(**inputs, decoder_input_ids=decoder, decoder_attention_mask=mask, use_cache=False).logits
        return logits.float().log_softmax(-1)
    tokens = torch.cat([inputs["input_ids"], answers[:, :-1]], 1)
    mask = torch.cat([inputs["attention_mask"], before.to(inputs["attention_mask"].dtype)], 1)
    extra: dict[str, Any] = {}
    arguments = inspect.signature(model.forward).parameters
    if "position_ids" in arguments:
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in arguments:
        extra["logits_to_keep"] = answers.shape[1]
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, **extra).logits
    return logits[:, -answers.shape[1] :].float().log_softmax(-1)


def kl_divergence(dense: Tensor, patched: Tensor) -> Tensor:
    """KL(dense || patched) per token, in nats: log-probabilities [B, m, V] -> [B, m]."""
    return (dense.exp() * (dense - patched)).sum(-1).clamp(min=0)
