"""Peak memory of one contender. It wants a process of its own: what another left behind would count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from ..patcher.binding.loading import LoadedModel
from .arms import Arms
from .peak import forget_peak, peak, used
from .workload import workload

# Copies of all scores that eager attention holds at once, in float32: products, softmax, and what becomes of them.
EAGER_COPIES = 3
# What configurations call the number of query heads.
HEADS = ("num_attention_heads", "num_heads", "n_head")


def eager_bytes(model: Any, batch_size: int, length: int) -> int:
    """About what eager attention needs at one layer, for all scores of all heads."""
    config = model.config.get_text_config(decoder=False)
    heads: int = next((getattr(config, name) for name in HEADS if hasattr(config, name)), 1)
    return EAGER_COPIES * 4 * batch_size * heads * length * length


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def peaks_of(
    loaded: LoadedModel, arms: Arms, arm: str, tokens: Tensor, lengths: Sequence[int], new_tokens: int
) -> dict[int, int | None]:
    """Peak bytes above the loaded model, for a pass over the first so many of tokens [B, n]; lengths ascend.

    None where the device does not tell.
    """
    model, task = loaded.model, loaded.base.task
    work = workload(model, task, tokens[:, : lengths[0]], new_tokens)
    work.warm_up()  # weights are read from disk when they are first used
    device = work.tokens.device
    base, peaks = used(device), {}
    with arms.use(arm):
        for length in lengths:
            forget_peak(device)
            workload(model, task, tokens[:, :length], new_tokens).run()
            most = peak(device)
            peaks[length] = None if most is None or base is None else max(most - base, 0)
    return peaks
