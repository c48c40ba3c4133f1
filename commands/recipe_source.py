"""RECIPE on the command line -> the directory that holds it: a local one, or one downloaded from the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.histogram_file import HISTOGRAMS_FILE
from ..calibration.histogram_file import MOST_BYTES as MOST_HISTOGRAMS
from ..errors import SparsifyError
from ..evaluation.demo import DEMO_MODELS
from ..hub import hub_answers
from ..patcher.binding.base_model import CONFIG_FILE, find_base_model, holds_model
from ..patcher.recipe import HUB_NAME, RECIPE_FILE, THRESHOLDS_FILE, BaseModel, is_recipe
from ..patcher.tensor_file import reason

RECIPE_FILES = (RECIPE_FILE, THRESHOLDS_FILE, HISTOGRAMS_FILE)


@dataclass(frozen=True)
class RecipeSource:
    """Where a recipe is. hub: NAME or NAME@REVISION if it was downloaded; its directory then belongs to the cache."""

    directory: Path
    hub: str | None = None

    def base_model(self, base: BaseModel, moved_to: str | None = None) -> tuple[str, BaseModel]:
        """The name or folder to load, and the base model as it is there: the recipe's own copy before the original.
        moved_to: where a person says that it is now.

        Raises what find_base_model raises; SparsifyError for a folder on another person's machine.
        """
        if moved_to is not None:
            return moved_to, replace(base, revision=None)
        own = BaseModel(base.id, base.task, base.model_type, base.config_hash)
        if self.hub is not None and (self.directory / CONFIG_FILE).is_file():
            name, _, revision = self.hub.partition("@")
            return name, BaseModel(own.id, own.task, own.model_type, own.config_hash, revision or None)
        if self.hub is not None and Path(base.id).is_absolute():
            raise SparsifyError(
                f"the recipe {self.hub} is for {base.id}, a folder of its author: say where that is with --model"
            )
        if self.hub is None and holds_model(self.directory):
            return str(self.directory), own
        return find_base_model(base, self.directory), base


def find_recipe(argument: str | Path) -> RecipeSource | None:
    """The recipe that an argument names: a directory, or USER/NAME[@REVISION] on the Hub, which is asked for its
    sparsify.json first. None for anything else, such as a model. SparsifyError if one there cannot be downloaded."""
    if is_recipe(argument):
        return RecipeSource(Path(argument))
    name, _, revision = str(argument).partition("@")
    if os.path.exists(argument) or "/" not in name or not HUB_NAME.fullmatch(name) or name in DEMO_MODELS:
        return None
    directory = _downloaded(name, revision or None, offline=not hub_answers())
    return None if directory is None else RecipeSource(directory, str(argument))


def _downloaded(name: str, revision: str | None, *, offline: bool) -> Path | None:
    import huggingface_hub

    try:
        huggingface_hub.hf_hub_download(name, RECIPE_FILE, revision=revision, local_files_only=offline)
    except (OSError, ValueError):
        return None  # a model, a name that is nowhere, or no network: what opens models says which
    wanted = [*RECIPE_FILES, CONFIG_FILE]
    try:
        if not offline:
            found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, dry_run=True)
            if any((file.file_size or 0) > MOST_HISTOGRAMS for file in found):
                raise ValueError(f"a file is larger than {MOST_HISTOGRAMS >> 20} MiB")
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=offline)
        )
    except (OSError, ValueError) as error:
        raise SparsifyError(f"the recipe {name} cannot be downloaded: {reason(error)}") from None
