"""Which model a recipe is for: a hash of its shape, and the folder where it is now."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ...errors import SparsifyError
from ..recipe import BaseModel

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")

# What two models must share for one recipe to fit both, under the names that families give it.
SHAPE_FIELDS = frozenset(
    {
        *("model_type", "is_encoder_decoder", "vocab_size", "layer_types", "sliding_window"),
        *("hidden_size", "d_model", "n_embd", "dim", "head_dim", "d_kv"),
        *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"),
        *("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
        *("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"),
        *("intermediate_size", "d_ff", "ffn_dim", "n_inner"),
    }
)


def config_hash(config: Any) -> str:
    """sha256 over a configuration's shape fields; the same for a fine-tuned copy and across transformers versions."""
    return hashlib.sha256(json.dumps(_shape(config.to_dict()), sort_keys=True, default=str).encode()).hexdigest()


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """The shape fields of a configuration and of those inside it (text_config, vision_config, encoder ...)."""
    parts = {key: _shape(value) for key, value in config.items() if isinstance(value, dict) and "model_type" in value}
    return {key: value for key, value in config.items() if key in SHAPE_FIELDS and value is not None} | parts


def holds_model(directory: Path) -> bool:
    """Whether a folder holds a model with its weights."""
    return (directory / CONFIG_FILE).is_file() and any((directory / name).is_file() for name in WEIGHTS_FILES)


def find_base_model(base: BaseModel, recipe_directory: Path) -> str:
    """Where a recipe's base model is now. A local folder that moved is looked for, by name and config hash, beside the
    recipe and in the working directory. SparsifyError says how to name it, also where a folder has the name of a model
    on the Hub."""
    path = Path(base.id)
    there = os.path.exists(path)
    if not path.is_absolute() and there:
        raise SparsifyError(
            f"the recipe is for {base.id} on the Hub, and here is a folder of that name: say which with --model, "
            f"./{base.id} for the folder"
        )
    if not path.is_absolute() or there:
        return base.id
    for candidate in (recipe_directory / path.name, recipe_directory.parent / path.name, Path.cwd() / path.name):
        if os.path.isfile(candidate / CONFIG_FILE):
            try:
                # Without False transformers asks on the terminal whether to run a folder's code.
                found = config_hash(AutoConfig.from_pretrained(candidate, trust_remote_code=False))
            except Exception:  # no configuration that can be read
                continue
            if found == base.config_hash:
                return str(candidate)
    raise SparsifyError(f"the recipe's model {base.id} is not there any more: say where it is with --model")
