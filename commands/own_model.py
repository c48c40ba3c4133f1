"""`sparsify patch --save-model`: the dense model beside its recipe, so that the directory needs no other."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UsageError
from ..evaluation.pooling import POOLING_FILE, pooling_file
from ..files import cannot_write, locked, same_place
from ..patcher.binding.base_model import CONFIG_FILE, holds_model
from ..patcher.binding.loading import LoadedModel
from ..patcher.tensor_file import reason

STAGED = ".saving-model"


def check_model_place(directory: Path, loaded: LoadedModel, *, save_model: bool, force: bool) -> None:
    """UsageError if a recipe written to a directory would be taken for one of the weights that are there, or if they
    would be written over and `force` is off."""
    itself = same_place(loaded.model.name_or_path, directory)
    if save_model and itself:
        raise UsageError(f"{directory} is where the model is: leave out --save-model")
    if save_model and (directory / CONFIG_FILE).exists() and not force:
        raise UsageError(f"{directory} holds a model already: use --force to replace it, or -o for another directory")
    if not save_model and not itself and holds_model(directory):
        raise UsageError(
            f"{directory} holds the weights of an earlier recipe, and this one would be taken to be for them: use "
            "--save-model to replace them, or -o for another directory"
        )


@contextmanager
def staged_model(loaded: LoadedModel, directory: Path) -> Iterator[Path]:
    """The dense model and its tokenizer on disk, in a folder inside a directory where nothing reads them.

    UsageError if another process does the same there; SparsifyError if they cannot be written. The folder goes at the
    end, and what a killed process left in it at the beginning.
    """
    staged = directory / STAGED
    try:
        staged.mkdir(parents=True, exist_ok=True)
        with locked(staged, wait=False):
            _empty(staged)
            try:
                _write_model(loaded, staged)
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    except BlockingIOError:
        raise UsageError(f"another process is saving a model into {directory}: wait for it") from None
    except OSError as error:
        raise cannot_write("model", directory, error) from None


def hide_model(directory: Path) -> None:
    """Takes the old config.json away: until a new one is there, the recipe has no weights of its own."""
    (directory / CONFIG_FILE).unlink(missing_ok=True)


def place_model(staged: Path, directory: Path) -> None:
    """Moves what was staged into its place, config.json last, and removes other weights.

    Whatever a kill leaves is the new model or none, and a recipe without a model of its own finds the original.
    """
    made = [path.relative_to(staged) for path in sorted(staged.rglob("*")) if path.is_file()]
    for old in directory.glob("model*.safetensors*"):
        if Path(old.name) not in made:
            old.unlink()
    for name in sorted(made, key=lambda name: str(name) == CONFIG_FILE):
        (directory / name).parent.mkdir(exist_ok=True)
        os.replace(staged / name, directory / name)


def _write_model(loaded: LoadedModel, staged: Path) -> None:
    # Weights that the checkpoint lacks and nothing uses were made up, and are no part of the model.
    used = {name: value for name, value in loaded.model.state_dict().items() if name not in loaded.unused}
    try:
        loaded.model.save_pretrained(staged, state_dict=used if loaded.unused else None)
    except SafetensorError as error:  # of a disk that is full, too
        raise OSError(reason(error)) from None
    for part in (loaded.tokenizer, loaded.extractor):
        if part is not None:
            part.save_pretrained(staged)
    pooling = pooling_file(loaded)
    if pooling is not None:
        (staged / POOLING_FILE).parent.mkdir()
        shutil.copyfile(pooling, staged / POOLING_FILE)
    mode = stat.S_IMODE((staged / CONFIG_FILE).stat().st_mode)
    for path in staged.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors makes files that no other user may read
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
