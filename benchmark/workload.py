"""What is timed: a prompt through the model, then new tokens one at a time. Every contender gets the same tokens."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.generation import decoder_start
from ..patcher.binding.growing_cache import cache_argument, cache_in, growing_cache
from ..patcher.binding.modules import input_device

FORWARD, PREFILL, DECODE = "forward", "prefill", "decode"
GENERATING = ("causal-lm", "seq2seq-lm")
# A first pass this short fills what a contender prepares once, such as transposed weights.
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Workload:
    """One pass over tokens, int64 [B, n] on the model's device.

    A causal model reads all but the last `new_tokens` at once and these one by one, so that n is the longest context;
    an encoder-decoder model reads n tokens and writes `new_tokens` behind its start token; all others only read.
    """

    model: Any
    task: str
    tokens: Tensor
    new_tokens: int

    @property
    def phases(self) -> tuple[str, ...]:
        """The parts that are timed apart."""
        if self.task not in GENERATING:
            return (FORWARD,)
        return (PREFILL, DECODE) if self.new_tokens else (PREFILL,)

    @property
    def prompt(self) -> int:
        """Tokens of the first phase, per sequence."""
        return self.tokens.shape[1] - (self.new_tokens if self.task == "causal-lm" else 0)

    def passes(self, phase: str) -> int:
        """How many tokens one sequence has in a phase."""
        return self.new_tokens if phase == DECODE else self.prompt

    def run(self, watch: Callable[[], float] | None = None) -> dict[str, float]:
        """Seconds of each phase. watch: in place of a clock that waits for the device."""
        now = watch or clock(self.tokens.device)
        with torch.inference_mode():
            times = [now()]
            state = self._read()
            times.append(now())
            if DECODE in self.phases:
                self._write(state)
                times.append(now())
        return {phase: times[i + 1] - times[i] for i, phase in enumerate(self.phases)}

    def warm_up(self) -> None:
        """A short pass through all that `run` goes through."""
        new = min(self.new_tokens, 2)
        Workload(self.model, self.task, self.tokens[:, : WARM_UP_TOKENS + new], new).run()

    def _read(self) -> dict[str, Any]:
        """The first phase; returns what the second goes on from."""
        ids = self.tokens[:, : self.prompt]
        mask = torch.ones_like(ids)
        if self.task not in GENERATING:
            self.model(input_ids=ids, attention_mask=mask)
            return {}
        cache = growing_cache(self.model, self.tokens.shape[1] if self.task == "causal-lm" else self.new_tokens + 1)
        state: dict[str, Any] = {"use_cache": True} | ({} if cache is None else {cache_argument(self.model): cache})
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            state["logits_to_keep"] = 1
        if self.task == "causal-lm":
            outputs = self.model(input_ids=ids, attention_mask=mask, **state)
        else:
            state |= {"encoder_outputs": self.model.get_encoder()(input_ids=ids, attention_mask=mask)}
            state |= {"attention_mask": mask}
            start = decoder_start(self.model) or 0
            outputs = self.model(decoder_input_ids=ids.new_full((len(ids), 1), start), **state)
        return state | {cache_argument(self.model): cache_in(outputs)}

    def _write(self, state: dict[str, Any]) -> None:
        """The second phase, token by token."""
        if self.task == "seq2seq-lm":
            for step in range(self.new_tokens):
                self.model(decoder_input_ids=self.tokens[:, step : step + 1], **state)
            return
        mask = torch.ones_like(self.tokens)
        for end in range(self.prompt + 1, self.tokens.shape[1] + 1):
            self.model(input_ids=self.tokens[:, end - 1 : end], attention_mask=mask[:, :end], **state)


def workload(model: Any, task: str, tokens: Tensor, new_tokens: int) -> Workload:
    """A Workload with its tokens where the model takes them."""
    return Workload(model, task, tokens.to(input_device(model)), new_tokens)


def clock(device: torch.device) -> Callable[[], float]:
    """Wall seconds, once the device has done all that it was given."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now
