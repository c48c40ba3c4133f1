"""A KV cache that writes new tokens into memory it already has.

The cache that transformers generates with concatenates all keys and values for every token: twice the traffic of dense
attention itself, which would hide what sparse attention saves.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

# Memory grows by this factor once it is full, so that copying stays a small part of all writing.
GROWTH = 1.5


class GrowingLayer(DynamicLayer):
    """A DynamicLayer whose keys and values are the used part of larger buffers.

    Whatever puts other tensors in their place (reordering beams, selecting sequences) is noticed, and new buffers are
    made. Where gradients are needed it concatenates like its base, because nothing that autograd saved may change.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()
        self.capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [B, G, m, D] keys and values; returns all of them."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            self._buffers = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        keys, values = self._room_for(key_states, value_states, used, total)
        keys[:, :, used:total].copy_(key_states)
        values[:, :, used:total].copy_(value_states)
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def _room_for(self, key_states: Tensor, value_states: Tensor, used: int, total: int) -> tuple[Tensor, Tensor]:
        """Buffers that hold what is cached and have room for `total` tokens."""
        if self._buffers is not None:
            buffers = self._buffers
            held = used == 0 or (_part_of(self.keys, buffers[0]) and _part_of(self.values, buffers[1]))
            fits = buffers[0].shape[0] == key_states.shape[0] and buffers[0].shape[2] >= total
            if held and fits:
                return buffers
        self.capacity = max(self.capacity, total, int(used * GROWTH))
        made = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            buffer = new.new_empty(*new.shape[:2], self.capacity, new.shape[3])
            if used and old is not None:
                buffer[:, :, :used] = old
            made.append(buffer)
        self._buffers = (made[0], made[1])
        return self._buffers

    def reset(self) -> None:
        super().reset()
        self._buffers = None


def _part_of(tensor: Tensor | None, buffer: Tensor) -> bool:
    return (
        tensor is not None
        and tensor.data_ptr() == buffer.data_ptr()
        and tensor.shape[0] == buffer.shape[0]
        and tensor.stride() == buffer.stride()
    )


def growing_cache(model: nn.Module, capacity: int = 0) -> Cache | None:
    """An empty cache for `model.generate(..., past_key_values=cache)` or a model's forward; the results are the same.

    capacity: tokens that it has room for from the start. Layers that are not plain ones (sliding windows, recurrent
    states) are what transformers makes them. None for models that do not generate with such a cache.
    """
    config = getattr(model, "config", None)
    supported = getattr(type(model), "_supports_default_dynamic_cache", None)
    if config is None or supported is None or not supported():
        return None
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [GrowingLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    if config.is_encoder_decoder:
        return EncoderDecoderCache(cache, DynamicCache(config=config.get_text_config(decoder=True)))
    return cache


def cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its KV cache: "cache" from transformers 5.24 on, "past_key_values" before."""
    takes = inspect.signature(model.forward).parameters
    return "cache" if "cache" in takes and "past_key_values" not in takes else "past_key_values"


def cache_in(outputs: Any) -> Cache | None:
    """The KV cache that a forward returned, under either name; None if it returned none."""
    found = (getattr(outputs, name, None) for name in ("cache", "past_key_values"))
    return next((cache for cache in found if cache is not None), None)
