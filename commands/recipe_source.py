"""RECIPE on the command line -> the directory that holds it: a local one, or one downloaded from the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.histogram_file import HISTOGRAMS_FILE
from ..calibration.histogram_file import MOST_BYTES as MOST_HISTOGRAMS
from ..errors import SparsifyError, UsageError
from ..evaluation.demo import DEMO_MODELS
from ..hub import NOT_THERE, hub_answers, refusal
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
            name, revision = _parts(self.hub)
            return name, BaseModel(own.id, own.task, own.model_type, own.config_hash, revision)
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
    if not _may_be_on_hub(argument):
        return None
    directory = _downloaded(str(argument)) if hub_answers() else _cached(str(argument))
    return None if directory is None else RecipeSource(directory, str(argument))


def no_recipe(argument: str | Path) -> UsageError:
    """What to say of an argument that has to be a recipe where find_recipe finds none."""
    if not _may_be_on_hub(argument):
        return UsageError(f"{argument} holds no recipe: make one with `sparsify patch MODEL`")
    if not hub_answers():
        return UsageError(_not_downloaded(str(argument)))
    return UsageError(
        f"{argument} holds no recipe, or is not on the Hub for you: check the name, log in with `hf auth login`, or "
        "make one with `sparsify patch MODEL`"
    )


def need_recipe(argument: str | Path) -> RecipeSource:
    """As find_recipe; where it finds none, the directory itself, whose reader says what is wrong with it.

    UsageError for a name that can be on the Hub alone.
    """
    found = find_recipe(argument)
    if found is None and _may_be_on_hub(argument):
        raise no_recipe(argument)
    return found or RecipeSource(Path(argument))


def _may_be_on_hub(argument: str | Path) -> bool:
    name = str(argument).partition("@")[0]
    return bool("/" in name and HUB_NAME.fullmatch(name)) and name not in DEMO_MODELS and not os.path.exists(argument)


def _downloaded(argument: str) -> Path | None:
    """The directory of a recipe that is on the Hub; None for what may be a model.

    Only the recipe's own files are downloaded, whatever else is there, and none before all their sizes are known.
    """
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    name, revision = _parts(argument)
    wanted = [*RECIPE_FILES, CONFIG_FILE]
    try:
        hf_hub_download(name, RECIPE_FILE, revision=revision, dry_run=True)
    except Exception as error:  # of the HTTP library, too
        absent = isinstance(error, errors.RemoteEntryNotFoundError) or refusal(error) == NOT_THERE
        if revision is None and (absent or _is_cached_model(name)):
            return None  # what opens models says what is wrong with the name
        raise _failed(argument, error) from error
    try:
        planned = snapshot_download(name, revision=revision, allow_patterns=wanted, dry_run=True)
        if large := [file.filename for file in planned if (file.file_size or 0) > MOST_HISTOGRAMS]:
            raise ValueError(f"its {large[0]} is larger than {MOST_HISTOGRAMS >> 20} MiB, so it is none of a recipe")
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        # A Hub that does not even list the repository: what was downloaded before has to do.
        cached = _cached(argument) if isinstance(error, errors.DryRunError) else None
        if cached is None:
            raise _failed(argument, error) from error
        return cached


def _parts(argument: str) -> tuple[str, str | None]:
    name, _, revision = argument.partition("@")
    return name, revision or None


def _failed(argument: str, error: Exception) -> SparsifyError:
    return SparsifyError(f"the recipe {argument} cannot be downloaded: {refusal(error) or reason(error)}")


def _is_cached_model(name: str) -> bool:
    """Whether a model was downloaded before under that name: it can be opened whatever the Hub says now."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG_FILE)
    return isinstance(config, str) and holds_model(Path(config).parent)


def _cached(argument: str) -> Path | None:
    """The directory of a recipe that was downloaded before; None for what may be a model."""
    from huggingface_hub import hf_hub_download

    name, revision = _parts(argument)
    try:
        return Path(hf_hub_download(name, RECIPE_FILE, revision=revision, local_files_only=True)).parent
    except (OSError, ValueError):
        if revision is not None:
            raise SparsifyError(_not_downloaded(argument)) from None
        return None


def _not_downloaded(argument: str) -> str:
    name, revision = _parts(argument)
    return (
        f"the recipe {argument} was not downloaded before, and the Hub cannot be reached: fetch it where there is a "
        f"network with `hf download {name}{f' --revision {revision}' if revision else ''}`"
    )
