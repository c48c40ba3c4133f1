"""A model without weights, from its configuration: every module is there, on the meta device, and takes no memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedModel

from ..errors import SparsifyError, UsageError
from ..patcher.binding.loading import LoadOptions, base_model, load_config, resolve_dtype
from ..patcher.binding.tasks import AUTO_CLASSES
from ..patcher.recipe import BaseModel
from .counted import count_attention


@dataclass(frozen=True)
class Skeleton:
    """model: in eval mode on the meta device. loads: whether the commands load such a model, or only Python does."""

    model: PreTrainedModel
    base: BaseModel
    loads: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def with_positions(self, count: int) -> PreTrainedModel:
        """The same model with position embeddings for at least `count` tokens, so that longer inputs can be counted."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if not isinstance(limit, int) or not 0 < limit < count:
            return self.model
        config = copy.deepcopy(self.model.config)
        config.max_position_embeddings = count
        return _build(type(self.model), config, self.dtype)


def load_skeleton(name: str, options: LoadOptions) -> Skeleton:
    """A model by Hub name or folder, from its configuration; no weights are read.

    UsageError for a GGUF file that would have to be fetched whole; NotPatchableError, SparsifyError as load_config.
    """
    if options.gguf_file is not None and not Path(name).is_dir():
        raise UsageError(
            f"inspect reads a GGUF file from a folder, not whole from the Hub: fetch it with "
            f"`hf download {name} {options.gguf_file}` and name the folder"
        )
    wanted = resolve_dtype(options.dtype)
    config = load_config(name, options)
    base = base_model(name, config, options)
    dtype = wanted if isinstance(wanted, torch.dtype) else _dtype_of(config)
    found, loads = _class_of(config, base.task)
    try:
        model = _build(found, config, dtype, trusted=options.trust_remote_code)
    except Exception as error:  # whatever a family's constructor raises for a configuration that it cannot take
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SparsifyError(f"the configuration of {name} makes no {found.__name__}: {reason}") from error
    return Skeleton(model, base, loads)


def _class_of(config: Any, task: str) -> tuple[Any, bool]:
    """The class to build, and whether it is the one that the commands load: else the class that the configuration
    names, or the family's base model."""
    if getattr(config, "auto_map", None) or type(config) in AUTO_CLASSES[task]._model_mapping:  # type: ignore[operator]
        return AUTO_CLASSES[task], True
    named = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, named, AutoModel), False


def _build(found: Any, config: Any, dtype: torch.dtype, *, trusted: bool = False) -> PreTrainedModel:
    """An auto class or a model's own class on meta, ready to be counted."""
    config._attn_implementation = None
    config._experts_implementation = "batched_mm"  # runs without values, and is counted
    with torch.device("meta"):
        if hasattr(found, "from_config"):
            model = found.from_config(config, dtype=dtype, trust_remote_code=trusted)
        else:
            model = found._from_config(config, dtype=dtype)
    _avoid_values(model)
    count_attention(model)
    return model.eval()


def _avoid_values(model: nn.Module) -> None:
    """Switches off what looks at the values of tokens or positions, which meta has none of: rotary embeddings that
    choose their frequencies by length, and a warning about padding."""
    module: Any
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[method-assign]
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = "default"
        elif isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")


def _dtype_of(config: Any) -> torch.dtype:
    """Of the weights as the configuration says; float32 where it does not."""
    dtype = config.dtype if config.dtype is not None else getattr(config.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
