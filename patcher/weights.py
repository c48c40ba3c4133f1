"""A fingerprint of a model's weights, to tell whether two models would give the same answers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import chain

import torch
from torch import Tensor, nn

SAMPLES = 64  # values of each tensor that are hashed themselves
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_fingerprint(model: nn.Module, without: Collection[str] = ()) -> str:
    """64 hex digits over the names, shapes, types and values of all parameters and buffers but those named.

    Values enter through the sum of their bit patterns, which any single change alters, and through a sample that
    knows its places: at the speed of memory, where hashing every byte of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in without:
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            digest.update(_value(tensor.detach()))
    return digest.hexdigest()


def _value(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    bits = flat if flat.dtype == torch.bool else flat.view(_WHOLE[flat.element_size()])
    total = int(bits.sum(dtype=torch.int64))
    places = torch.linspace(0, len(bits) - 1, min(SAMPLES, len(bits)), dtype=torch.float64).long()
    return f"{total} {bits[places.to(bits.device)].tolist()}".encode()
