"""The sum of visible value rows, carried from one decoding step to the next beside the KV cache.

V-mean compensation needs the mean of all value rows that a query sees. Summing them anew for every token would read the
whole cache, which is what dropping keys is to avoid; with the sum of the step before only the new row is read.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from ..methods.visibility import RowRanges, Visibility


class _State(threading.local):
    """Of one thread, so that a model may serve several at once."""

    def __init__(self) -> None:
        self.holds = False
        self.summed: weakref.ref[Tensor] | None = None
        self.total = self.first = self.last = torch.zeros(0)


class ValueSums:
    """Of one attention module. kind: "self" or "cross". It is the module's forward pre-hook: it sees the cache before
    it grows.

    A sum is carried on only if the cache still holds the very tensor that was summed, and each row's range has grown by
    the new key alone (of cross-attention: has not changed). Whatever reorders, crops, selects or resets a cache makes
    another tensor or another range, and a sliding window moves the start of the range: then the sum is made anew.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._state = _State()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model begins without a sum: its cache is another one."""
        return {"kind": self.kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.kind = state["kind"]
        self._state = _State()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes whether the module's cache layer holds what was summed; the tensor itself is gone once it grows."""
        if torch.compiler.is_compiling():
            return  # a graph keeps nothing of a thread: the sum is made anew there
        state = self._state
        state.holds = False
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)
        layer = getattr(module, "layer_idx", None)
        if cache is None or not isinstance(layer, int):
            return
        if isinstance(cache, EncoderDecoderCache):
            if self.kind == "cross" and not cache.is_updated.get(layer):
                return  # what is there are another prompt's values
            cache = cache.cross_attention_cache if self.kind == "cross" else cache.self_attention_cache
        values = getattr(cache.layers[layer], "values", None) if layer < len(cache.layers) else None
        state.holds = values is not None and state.summed is not None and state.summed() is values

    def of_step(self, value: Tensor, visibility: Visibility, queries: int) -> Tensor | None:
        """The sum [B, G, E] of the value rows that a single query sees, float64 (float32 where there is none).

        value: [B, G, n, E]. None for several queries, and for masks that are no ranges.
        """
        state = self._state
        holds, state.holds, state.summed = state.holds, False, None
        if queries != 1 or not isinstance(visibility, RowRanges):
            return None
        batch = value.shape[0]
        first, last = visibility.first.expand(batch, 1)[:, 0], visibility.last.expand(batch, 1)[:, 0]
        grown = 0 if self.kind == "cross" else 1
        if not (holds and torch.equal(first, state.first) and torch.equal(last, state.last + grown)):
            state.total = _sum(value, first, last)
        elif grown:
            state.total = state.total + value[torch.arange(batch, device=value.device), :, last - 1]
        state.first, state.last, state.summed = first, last, weakref.ref(value)
        return state.total


def _sum(value: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """value [B, G, n, E] summed over first <= position < last, whatever stands elsewhere: [B, G, E]."""
    positions = torch.arange(value.shape[2], device=value.device)
    inside = ((positions >= first[:, None]) & (positions < last[:, None]))[:, None, :, None]
    return torch.where(inside, value, 0).sum(2, dtype=torch.float32 if value.device.type == "mps" else torch.float64)
