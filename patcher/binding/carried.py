"""What is carried from one decoding step to the next beside the KV cache: the sum of visible value rows, rounded keys.

V-mean compensation needs the mean of all value rows that a query sees. Summing them anew for every token would read the
whole cache, which is what dropping keys is to avoid; with the sum of the step before only the new row is read. Where
keys are read rounded to 8 bits first, only the new one has to be rounded.

Whether a step follows the one before is a question to tensors. So on a GPU nothing is carried: V-mean compensation sums
the whole cache there, as nothing else would be known without waiting.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from ..kernels.arguments import DTYPES
from ..kernels.library import native
from ..methods import AttentionInputs, Method, RowRanges, TopK, TopTheta, asking
from ..methods.budget import Budget
from ..methods.rounded_keys import RoundedKeys
from .growing_cache import GROWTH

# From so many keys on they are read rounded first, once a cache went on for so many steps: beam search puts another one
# in its place every step. Cold caches, 64 floats a key, 1/64 of them kept, 1,024 keys: 1.4 times as fast as reading all
# in full with 9 heads on 3 KV heads, 1.9 times with 12 on 12. Rounding all of them once takes 7 to 12 steps' gain.
ROUNDED_FROM = 1024
STEPS_BEFORE = 2


class _State(threading.local):
    """Of one thread, so that a model may serve several at once."""

    def __init__(self) -> None:
        self.holds = False
        self.seen: tuple[weakref.ref[Tensor], weakref.ref[Tensor]] | None = None
        self.total = self.first = self.last = torch.zeros(0)
        self.steps = 0
        self.rounded: RoundedKeys | None = None


class Carried:
    """Of one attention module. kind: "self" or "cross". It is the module's forward pre-hook: it sees the cache before
    it grows.

    What is carried goes on only if the cache still holds the very tensors of the step before, and each row sees the new
    key alone beyond those it saw (of cross-attention: no other). Whatever reorders, crops, selects or resets a cache
    makes other tensors or other ranges, and it is made anew. A sum is made anew too where a sliding window moves the
    start of a range; rounded keys are not.
    sums: whether there is a use for sums of values. rounds: "no", "long" caches alone, where they change no result, or
    "all", where the method asks for them.
    """

    def __init__(self, kind: str, *, sums: bool, rounds: str) -> None:
        self.kind, self.sums, self.rounds = kind, sums, rounds
        self._state = _State()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model begins with nothing: its cache is another one."""
        return {"kind": self.kind, "sums": self.sums, "rounds": self.rounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state = _State()

    def forget(self) -> None:
        """Gives back what is carried, of every thread."""
        self._state = _State()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes whether the module's cache layer holds the tensors of the last step; they are gone once it grows."""
        if torch.compiler.is_compiling():
            return  # a graph keeps nothing of a thread: all is made anew there
        state = self._state
        state.holds = False
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)
        index = getattr(module, "layer_idx", None)
        if cache is None or not isinstance(index, int):
            return
        if isinstance(cache, EncoderDecoderCache):
            if self.kind == "cross" and not cache.is_updated.get(index):
                return  # what is there is of another prompt
            cache = cache.cross_attention_cache if self.kind == "cross" else cache.self_attention_cache
        layer = cache.layers[index] if index < len(cache.layers) else None
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and state.seen is not None:
            state.holds = state.seen[0]() is keys and state.seen[1]() is values

    def with_carried(self, inputs: AttentionInputs) -> AttentionInputs:
        """A call with what is carried; the same for several queries, masks that are no ranges, and on a GPU."""
        state, visibility = self._state, inputs.visibility
        holds, state.holds, state.seen = state.holds, False, None
        ranges = visibility if isinstance(visibility, RowRanges) and asking.answers(visibility.first) else None
        if inputs.query.shape[2] != 1 or ranges is None:
            state.steps, state.rounded = 0, None
            return inputs
        batch = inputs.value.shape[0]
        first, last = ranges.first.expand(batch, 1)[:, 0], ranges.last.expand(batch, 1)[:, 0]
        goes_on = holds and torch.equal(last, state.last + (0 if self.kind == "cross" else 1))
        total = self._sum(inputs.value, first, last, goes_on) if self.sums else None
        rounded = self._rounded(inputs.key, goes_on) if self.rounds != "no" else None
        state.first, state.last = first, last
        state.seen = weakref.ref(inputs.key), weakref.ref(inputs.value)
        return replace(inputs, value_sum=total, rounded=rounded)

    def _sum(self, value: Tensor, first: Tensor, last: Tensor, goes_on: bool) -> Tensor:
        """The sum [B, G, E] of the value rows [B, G, n, E] that a single query sees, float64 (float32 where there is
        none)."""
        state = self._state
        if not (goes_on and torch.equal(first, state.first)):
            state.total = _sum(value, first, last)
        elif self.kind == "self":
            state.total = state.total + value[torch.arange(value.shape[0], device=value.device), :, last - 1]
        return state.total

    def _rounded(self, key: Tensor, goes_on: bool) -> RoundedKeys | None:
        """Rounded keys with room for those of key [B, G, n, D], if they are worth it and a kernel reads them."""
        state, keys = self._state, key.shape[2]
        if not goes_on:
            state.steps, state.rounded = -1, None
        state.steps += 1
        if not key.is_cpu or key.dtype not in DTYPES or native() is None:
            return None
        if self.rounds == "long" and (keys < ROUNDED_FROM or state.steps < STEPS_BEFORE):
            return None
        if state.rounded is None:
            state.rounded = RoundedKeys.room_for(key, int(keys * GROWTH))
        elif state.rounded.room < keys:
            state.rounded = state.rounded.enlarged(key, int(keys * GROWTH))
        return state.rounded


def carried_for(kind: str, method: Method) -> Carried | None:
    """What a module of a kind has to carry for its method; None if nothing."""
    if not isinstance(method, Budget):
        return None
    sums, rounds = method.compensation == "sdc+vmc", "no"
    if isinstance(method, TopK | TopTheta) and not (method.protect_first or method.protect_recent):
        rounds = "all" if method.denominator == "rounded" else "no" if method.reads_every_score else "long"
    return Carried(kind, sums=sums, rounds=rounds) if sums or rounds != "no" else None


def _sum(value: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """value [B, G, n, E] summed over first <= position < last, whatever stands elsewhere: [B, G, E]."""
    positions = torch.arange(value.shape[2], device=value.device)
    inside = ((positions >= first[:, None]) & (positions < last[:, None]))[:, None, :, None]
    return torch.where(inside, value, 0).sum(2, dtype=torch.float32 if value.device.type == "mps" else torch.float64)
