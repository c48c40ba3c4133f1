"""What a calibration has counted so far, kept on disk, so that the same command goes on after a kill."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..processes import Processes
from .histogram_file import load_histograms, read_notes, save_histograms
from .run import Histograms, Observed

logger = logging.getLogger(__name__)

PREFIX = ".calibrating-"
SECONDS = 20.0  # between two savings


@dataclass
class Checkpoint:
    """The file of this process in a recipe's directory; nothing is kept without a directory.

    key: over everything that the result follows from; a file with another one is ignored and then replaced.
    """

    directory: Path | None
    key: str
    processes: Processes = field(default_factory=Processes)
    _saved: float = field(default_factory=time.monotonic, init=False)
    _told: bool = field(default=False, init=False)

    def resume(self, observed: Observed) -> list[str]:
        """Adds what earlier runs have counted to the first process's `observed`; the items done, for all processes.

        To be called by all of them. Where two parts share an item, the second is left out and done again.
        """
        done: list[str] = []
        for path in _parts(self.directory):
            part = self._read(path, observed)
            if part is not None and not set(part.items) & set(done):
                done += part.items
                if self.processes.is_main:
                    observed.add(part)
        self.processes.wait()  # nobody writes before everybody has read
        # A file goes once what it holds is safe in this process's own.
        if self.processes.is_main and done and self.save(observed):
            for path in self._own_parts():
                if path != self._path():
                    path.unlink(missing_ok=True)
        self.processes.wait()
        return done

    def save_at_times(self, observed: Observed) -> None:
        """Saves if the last time is SECONDS ago."""
        if time.monotonic() - self._saved >= SECONDS:
            self.save(observed)

    def save(self, observed: Observed) -> bool:
        """Saves what there is, unless an item is half added; whether it did. A full disk costs the checkpoint alone."""
        path = self._path()
        if path is None or not observed.items or not observed.whole:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_histograms(observed.histograms, path, {"key": self.key, "items": observed.items})
        except OSError as error:
            if not self._told:
                logger.warning("cannot keep what is calibrated so far in %s: %s", path, error.strerror or error)
            self._told = True
            return False
        finally:
            self._saved = time.monotonic()
        return True

    def remove(self) -> None:
        """Removes this calibration's files, of all processes; to be called by one of them when all are done."""
        for path in self._own_parts():
            with suppress(OSError):  # the calibration is written; a part that stays is ignored
                path.unlink()

    def _own_parts(self) -> list[Path]:
        return [path for path in _parts(self.directory) if self._notes(path) is not None]

    def _notes(self, path: Path) -> dict[str, Any] | None:
        """The notes of a part, or None if it is damaged or another calibration's."""
        try:
            notes = read_notes(path)
        except DataError:
            return None
        return notes if notes.get("key") == self.key and isinstance(notes.get("items"), list) else None

    def _path(self) -> Path | None:
        return None if self.directory is None else self.directory / f"{PREFIX}{self.processes.rank}.safetensors"

    def _read(self, path: Path, observed: Observed) -> Observed | None:
        """A part, or None if it is damaged or another calibration's."""
        notes = self._notes(path)
        if notes is None:
            return None
        try:
            histograms = load_histograms(path)[0]
        except DataError:
            return None
        return Observed(histograms, list(map(str, notes["items"]))) if _same(histograms, observed.histograms) else None


def _same(left: Histograms, right: Histograms) -> bool:
    """Whether two can be added."""
    return left.keys() == right.keys() and all(left[name].settings() == right[name].settings() for name in left)


def _parts(directory: Path | None) -> list[Path]:
    """The file of the first process comes first: it may hold what the others' hold too."""
    if directory is None:
        return []
    paths = directory.glob(f"{PREFIX}*.safetensors")
    return sorted(paths, key=lambda path: (len(path.name), path.name))
