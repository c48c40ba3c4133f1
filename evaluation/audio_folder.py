"""Sound beside the file that describes it, as `datasets` knows audio folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .datasets.base import Record

METADATA = "metadata"  # the stem of the file in an audio folder whose file_name names the sound
METADATA_FILES = tuple(f"{METADATA}{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))


def described(folder: Path) -> Path | None:
    """The file that describes an audio folder; None for any other folder."""
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def with_places(records: Iterable[Record], file: Path) -> Iterator[Record]:
    """The records of a file with paths of sound that count from where the command runs, no longer from the file."""
    for where, record in records:
        if isinstance(record, dict):
            if file.stem == METADATA and "file_name" in record and "audio" not in record:
                record = {**record, "audio": record["file_name"]}
            if "audio" in record:
                record = {**record, "audio": _placed(record["audio"], file.parent)}
        yield where, record


def _placed(audio: Any, folder: Path) -> Any:
    if isinstance(audio, str):
        return os.path.join(folder, os.path.expanduser(audio))
    if isinstance(audio, dict) and isinstance(audio.get("path"), str) and audio.get("bytes") is None:
        return {**audio, "path": _placed(audio["path"], folder)}
    return audio
