"""What a calibration has counted so far, kept on disk, so that the same command goes on after a kill."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..processes import Processes
from .histogram_file import load_histograms, save_histograms
from .run import Observed

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
        if self.processes.is_main and done:
            self.save(observed)
            for path in _parts(self.directory):
                if path != self._path():
                    path.unlink(missing_ok=True)
        self.processes.wait()
        return done

    def save_at_times(self, observed: Observed) -> None:
        """Saves if the last time is SECONDS ago."""
        if time.monotonic() - self._saved >= SECONDS:
            self.save(observed)

    def save(self, observed: Observed) -> None:
        """Saves what there is, unless an item is half added. A disk that is full costs the checkpoint alone."""
        path = self._path()
        if path is None or not observed.items or not observed.whole:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_histograms(observed.histograms, path, {"key": self.key, "items": observed.items})
        except OSError as error:
            if not self._told:
                logger.warning("cannot keep what is calibrated so far in %s: %s", path, error.strerror or error)
            self._told = True
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Removes the files of all processes; to be called by one of them when all are done."""
        unfinished = self.directory.glob(f".writing-{PREFIX}*") if self.directory else ()
        for path in (*_parts(self.directory), *unfinished):
            path.unlink(missing_ok=True)

    def _path(self) -> Path | None:
        return None if self.directory is None else self.directory / f"{PREFIX}{self.processes.rank}.safetensors"

    def _read(self, path: Path, observed: Observed) -> Observed | None:
        """A part, or None if it is damaged or another calibration's."""
        try:
            histograms, notes = load_histograms(path)
        except DataError:
            return None
        fits = notes.get("key") == self.key and histograms.keys() == observed.histograms.keys()
        return Observed(histograms, list(map(str, notes["items"]))) if fits else None


def _parts(directory: Path | None) -> list[Path]:
    """The file of the first process comes first: it may hold what the others' hold too."""
    if directory is None:
        return []
    paths = directory.glob(f"{PREFIX}*.safetensors")
    return sorted(paths, key=lambda path: (len(path.name), path.name))
