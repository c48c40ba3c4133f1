"""Random tokens, images and sound of the shape that a model takes, for the proof of patch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import NotPatchableError
from .binding.modules import input_device

# Sound of about so many positions, where a model takes any length.
POSITIONS = 48


def takes_text(model: Any) -> bool:
    """Whether what a model, or a class of them, reads first of all is tokens."""
    return bool(getattr(model, "main_input_name", "input_ids") == "input_ids")


def random_tokens(model: Any, batch: int, length: int) -> Tensor:
    """int64 [batch, length] without special tokens; from a generator of its own. Zeros without a vocabulary."""
    config = model.config.get_text_config()
    special: set[int | None] = set()
    for name in ("pad", "bos", "eos", "decoder_start"):
        token = getattr(config, f"{name}_token_id", None)
        special |= set(token) if isinstance(token, list | tuple) else {token}
    words = getattr(config, "vocab_size", None) or 1
    ordinary = torch.tensor([token for token in range(words) if token not in special] or [0])
    generator = torch.Generator().manual_seed(length)
    return ordinary[torch.randint(len(ordinary), (batch, length), generator=generator)].to(input_device(model))


def other_inputs(model: Any, arguments: Any) -> dict[str, Tensor]:
    """What a forward call takes beside tokens or in their place, a batch of one on the CPU; empty for a model of text.

    arguments: the names that the forward knows. NotPatchableError for input whose shape the configuration does not say.
    """
    config = model.config
    name = model.main_input_name if not takes_text(model) else "pixel_values"
    if takes_text(model) and not (name in arguments and compares_images_with_text(config)):
        return {}
    shape = None
    if name == "pixel_values":
        shape = _image(getattr(config, "vision_config", config))
    elif name == "input_features" and hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)  # Whisper halves the length
    elif name == "input_values" and hasattr(config, "conv_stride"):
        shape = (1, math.prod(config.conv_stride) * (POSITIONS + 2))
    if shape is None:
        raise NotPatchableError(
            f"the shape of the {name} that {type(model).__name__} takes is not known, so the patch cannot be verified "
            "on it: use --no-verify"
        )
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)}


def compares_images_with_text(config: Any) -> bool:
    """Whether a configuration is of two towers, as CLIP's. Where images stand among the tokens of a text, text alone
    will do."""
    among_tokens = any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
    return hasattr(config, "vision_config") and hasattr(config, "text_config") and not among_tokens


def _image(config: Any) -> tuple[int, ...] | None:
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        size = (size, size)
    return None if size is None else (1, getattr(config, "num_channels", 3), *size)
