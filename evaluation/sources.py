"""Where items come from: the embedded demo set, a file, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..hub import hub_answers
from .datasets import DATASETS, dataset_of
from .datasets.base import Dataset
from .datasets.labels import ANY_LABELS, with_labels
from .demo import DEMO_SPLITS, demo_data_path
from .formats import READERS, items_from_records, read_items
from .items import ItemSet, content_hash

DEMO = "demo"
SCHEMA_NAME = re.compile(r"\w+")
HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def load_items(dataset: str, split: str | None = None, *, default_split: str = "validation") -> ItemSet:
    """The items of `demo`, of a file, or of one split of a data set on the Hub.

    A file is recognised by its fields; NAME=FILE reads it as the named data set. Raises UsageError for a split that is
    not there, DataError for data that is missing or malformed.
    """
    if not dataset.strip():
        raise UsageError("--dataset is empty; give demo, a file or the name of a data set")
    if dataset == DEMO:
        return _load_demo(default_split if split is None else split)
    schema, file = _named_file(dataset)
    if file or is_path(dataset):
        if split is not None:
            raise UsageError(f"--split {split} cannot be used with {dataset}: a file has no splits")
        path = file or dataset
        return replace(read_items(Path(os.path.expanduser(path)), path, dataset=schema), name=dataset)
    return _load_hub(dataset, default_split if split is None else split)


def not_judged(pool: ItemSet, judged: ItemSet, purpose: str) -> ItemSet:
    """The items of a pool that ask what no judged item asks, whatever their ids. purpose: what they are for ("tune").

    UsageError if nothing is left.
    """
    asked = {content_hash(item) for item in judged.items}
    others = tuple(item for item in pool.items if content_hash(item) not in asked)
    if not others:
        raise UsageError(
            f"every item of {pool.name} is evaluated, so none is left to {purpose} on: evaluate fewer with --limit, or "
            "name other data with --calibrate-on"
        )
    return replace(pool, items=others)


def _named_file(dataset: str) -> tuple[Dataset | None, str]:
    """Schema and file of NAME=FILE; None and "" for anything else, such as a file with such a name."""
    name, equals, file = dataset.partition("=")
    if not equals or not SCHEMA_NAME.fullmatch(name) or os.path.exists(dataset):
        return None, ""
    if name not in DATASETS:
        close = get_close_matches(name, DATASETS) or list(DATASETS)
        raise UsageError(f"--dataset {dataset}: no data set is called {name}; there is {', '.join(close)}")
    if not file.strip():
        raise UsageError(f"--dataset {dataset}: the file is missing behind {name}=")
    return DATASETS[name], file


def is_path(dataset: str) -> bool:
    """Whether the name means a file: it is one, is written like one, or could not be a name on the Hub."""
    return (
        Path(dataset).suffix.lower() in READERS
        or dataset.startswith(("./", "../"))
        or not HUB_NAME.fullmatch(dataset)
        # `squad` stays the data set even where a file or folder has that name: that one is ./squad.
        or (dataset not in DATASETS and os.path.exists(dataset))
    )


def is_at_hand(dataset: str) -> bool:
    """Whether load_items takes the name for `demo`, for a data set that is listed or for an ordinary file that exists,
    and not for anything else on the Hub."""
    return dataset in (DEMO, *DATASETS) or Path(_named_file(dataset)[1] or dataset).expanduser().is_file()


def _load_demo(split: str) -> ItemSet:
    if split not in DEMO_SPLITS:
        raise _unknown_split(DEMO, split, DEMO_SPLITS)
    return read_items(Path(demo_data_path(split)), DEMO, split)


def _load_hub(name: str, split: str) -> ItemSet:
    known = DATASETS.get(name)
    if known is not None and not known.hub:
        raise UsageError(f"--dataset {name}: that is what a file can hold, not a data set; give it as {name}=FILE")
    repo, config = (known.hub, known.config) if known else (name, None)
    splits = _hub_splits(name, repo, config)
    wanted = known.split_name(split) if known else split
    if wanted not in splits:
        raise _unknown_split(name, split, splits)
    rows = _undecoded(splits[wanted])
    records = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return items_from_records(records, name, wanted, known or _with_label_names(rows))


def _undecoded(rows: Any) -> Any:
    """Rows whose sound is still the bytes of a file: it is decoded when a model is to hear it."""
    from datasets import Audio

    features = getattr(rows, "features", None) or {}
    for name in [name for name, feature in features.items() if isinstance(feature, Audio)]:
        rows = rows.cast_column(name, Audio(decode=False))
    return rows


def _with_label_names(rows: Any) -> Dataset | None:
    """The schema of texts with labels whose names the Hub knows; None for anything else."""
    names = getattr((getattr(rows, "features", None) or {}).get("label"), "names", None)
    return with_labels(names) if names and dataset_of(next(iter(rows), None)) is ANY_LABELS else None


def _hub_splits(name: str, repo: str, config: str | None) -> Any:
    """Every split of a data set: from the Hub, or from what was downloaded before where the Hub cannot be reached."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(repo, config) if _online() else _local_splits(name, repo, config)
    except DataError:
        raise
    except DatasetNotFoundError as error:
        raise DataError(f"{_called(name, repo)} is neither a file nor a data set that the Hub lets you read") from error
    except ConnectionError as error:
        raise _unreachable(name, repo) from error
    except Exception as error:
        # `datasets` raises what its many readers raise (ValueError, RuntimeError, OSError, Arrow and HTTP errors).
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"data set {_called(name, repo)} cannot be loaded: {reason}") from error


def _online() -> bool:
    import datasets

    return not datasets.config.HF_HUB_OFFLINE and hub_answers()


def _local_splits(name: str, repo: str, config: str | None) -> Any:
    """Every split of a data set that was used or downloaded before."""
    from datasets import load_dataset

    try:
        with _offline():
            return load_dataset(repo if _is_in_datasets_cache(repo, config) else _downloaded_copy(name, repo), config)
    except FileNotFoundError as error:  # what is here lacks its data files
        raise _unreachable(name, repo) from error


@contextmanager
def _offline() -> Iterator[None]:
    """`datasets` in its offline mode, so that it does not retry what was just seen to fail."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _is_in_datasets_cache(repo: str, config: str | None) -> bool:
    """Whether `datasets` has prepared this data set before; offline it then uses that copy."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / repo.replace("/", "___")
    return any(folder.glob(f"{config or '*'}/*/*"))


def _downloaded_copy(name: str, repo: str) -> str:
    """The folder that `hf download` made, where `datasets` does not look by itself when it is offline."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repo, repo_type="dataset", local_files_only=True)
    except Exception as error:  # not there, or not even a possible name
        raise _unreachable(name, repo) from error


def _called(name: str, repo: str) -> str:
    return name if name == repo else f"{name} ({repo})"


def _unreachable(name: str, repo: str) -> DataError:
    return DataError(
        f"data set {_called(name, repo)} is not on this machine and the Hugging Face Hub cannot be reached; "
        f"fetch it where there is a connection with: hf download --repo-type dataset {repo}"
    )


def _unknown_split(name: str, split: str, splits: Any) -> UsageError:
    return UsageError(f"--split {split}: data set {name} has the splits {', '.join(splits)}")
