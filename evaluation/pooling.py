"""From the hidden states of a text's tokens to one embedding, as a sentence-transformers model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, SparsifyError
from ..hub import hub_answers
from ..patcher.binding.loading import LoadedModel

POOLING_FILE = "1_Pooling/config.json"
# What that file calls a mode -> what it is here. The length's square root does not change a direction.
MODES = {
    "cls": "cls",
    "cls_token": "cls",
    "max": "max",
    "max_tokens": "max",
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",
    "lasttoken": "last token",
}
DEFAULT_MODE = "mean"


def pooling_mode(loaded: LoadedModel) -> str:
    """A value of MODES: what the POOLING_FILE in a model's folder or Hub repository says, DEFAULT_MODE without one.

    DataError for a malformed file, SparsifyError for a mode that is not known.
    """
    file = pooling_file(loaded)
    if file is None:
        return DEFAULT_MODE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{file} holds no JSON object")
    asked = _asked(config)
    if len(asked) != 1 or asked[0] not in MODES:
        named = " and ".join(asked) or "no mode"
        raise SparsifyError(f"{file} asks for {named}: pooling has to be one of mean, cls, max and last token")
    return MODES[asked[0]]


def _asked(config: dict[str, Any]) -> list[str]:
    if isinstance(config.get("pooling_mode"), str):
        return [config["pooling_mode"]]
    prefix = "pooling_mode_"
    return [name.removeprefix(prefix) for name, wanted in config.items() if name.startswith(prefix) and wanted is True]


def pooling_file(loaded: LoadedModel) -> Path | None:
    """The POOLING_FILE of a model, None if it has none."""
    # Not base.id: an embedded model has a name of its own there.
    name = loaded.model.name_or_path
    if Path(name).exists():
        file = Path(name) / POOLING_FILE
        return file if file.is_file() else None
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                name, POOLING_FILE, revision=loaded.base.revision, local_files_only=not hub_answers()
            )
        )
    except (huggingface_hub.errors.EntryNotFoundError, OSError, ValueError):
        return None


def embed(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One embedding of length 1 for each text, float32 [B, d].

    hidden: [B, n, d], padded on the right. mask: [B, n], 1 where there is a token. mode: a value of MODES.
    """
    hidden, real = hidden.float(), mask.bool().unsqueeze(-1)
    if mode == "cls":
        pooled = hidden[:, 0]
    elif mode == "max":
        pooled = hidden.masked_fill(~real, -torch.inf).amax(1)
    elif mode == "last token":
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(-1) - 1]
    else:
        # Filled and not multiplied by 0: what stands at padding may be anything, NaN included.
        pooled = hidden.masked_fill(~real, 0).sum(1) / real.sum(1)
    return nn.functional.normalize(pooled, dim=-1)
