"""A run's predictions on disk, batch by batch, so that a killed run goes on where it stopped.

While a run goes on, its directory holds run.json (which run it is) and for each process predictions.jsonl (one line an
item) and batches.jsonl (one line a batch, written after its items: what was kept, and how long it took). A batch counts
if its line is there; what belongs to no such batch is dropped and done again. Batches are the same in every run, and
process r takes every count-th, so neither a kill nor another number of processes changes any number.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, SparsifyError, UsageError
from ..files import append_file, cannot_write, read_file, sha256, write_file
from ..patcher.meter import Meter
from ..processes import Processes
from .tasks.base import Record

SCHEMA_VERSION = 3  # of results.json
RUN, PREDICTIONS, BATCHES, RESULTS = "run.json", "predictions.jsonl", "batches.jsonl", "results.json"
RESULTS_HASH, PREDICTIONS_HASH = "sha256", "predictions_sha256"  # in results.json
MOST_RESULTS, MOST_PREDICTIONS = 2**26, 2**34  # bytes


@dataclass
class Journal:
    """What was done of a run. Without a directory it is kept in memory alone.

    records: by item id, as lines of predictions.jsonl. done: the indices of finished batches. cached: items whose dense
    answer was known. work: for each process that took part the number of its items. ended: the results of a run that
    has ended, whose batches are all done.
    """

    directory: Path | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    meter: Meter = field(default_factory=Meter)
    seconds: dict[str, float] = field(default_factory=lambda: {"dense": 0.0, "patched": 0.0})
    cached: int = 0
    work: dict[int, int] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    _suffix: str = ""
    _lock: IO[str] | None = None

    @classmethod
    def open(cls, directory: Path, key: str, processes: Processes, *, anew: bool = False) -> Journal:
        """The journal of the run that `key` tells from all others; anew: forget what was done before.

        To be called by all processes. Raises UsageError if the directory is another run's or is being written by
        another process, SparsifyError if it cannot be written.
        """
        lock = None
        try:
            if processes.is_main:
                lock = _claim(directory, key)
                if anew:
                    for path in (*_files(directory, PREDICTIONS), *_files(directory, BATCHES), directory / RESULTS):
                        path.unlink(missing_ok=True)
                _compact(directory)
            processes.wait()
            journal = cls(directory, _suffix="" if processes.is_main else f".rank{processes.rank}", _lock=lock)
            journal._read()
        except OSError as error:
            raise _cannot_write(directory, error) from None
        processes.wait()  # nobody appends before everybody has read
        return journal

    @classmethod
    def of_ended(cls, directory: Path, results: dict[str, Any]) -> Journal:
        """The journal of a run that has ended, from its predictions."""
        lines = {line["id"]: line for line in _lines(directory / PREDICTIONS)}
        work = {int(rank): count for rank, count in results["processes"]["items"].items()}
        return cls(
            directory, lines, seconds=results["seconds"], cached=results["dense_from_cache"], work=work, ended=results
        )

    def has(self, batch: int) -> bool:
        """Whether a batch is done."""
        return self.ended is not None or batch in self.done

    def append(
        self, batch: int, records: Sequence[Record], meter: Meter, seconds: dict[str, float], cached: int, rank: int
    ) -> None:
        """Adds a finished batch. SparsifyError if it cannot be written."""
        lines = [record.to_dict() for record in records]
        line = {
            "batch": batch,
            "items": [record.item.id for record in records],
            "rank": rank,
            "cached": cached,
            "seconds": seconds,
            "kept": meter.to_dict(),
        }
        if self.directory is not None:
            try:
                _append(self._path(PREDICTIONS), lines)
                _append(self._path(BATCHES), [line])
            except OSError as error:
                raise _cannot_write(self.directory, error) from None
        self._add({entry["id"]: entry for entry in lines}, line)

    def merge(self, processes: Processes) -> None:
        """Takes in what the other processes have done; to be called by all of them at the end."""
        processes.wait()
        if self.directory is not None and self.ended is None and processes.is_main and processes.count > 1:
            _compact(self.directory)
            self._read()

    def finish(self, lines: Sequence[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
        """Puts the final predictions.jsonl and results.json in place of all else, and returns the results as they are
        written: with hashes of both files. SparsifyError if that fails."""
        if self.directory is None:
            return results
        texts = [json.dumps(line, ensure_ascii=False) for line in lines]
        results = {**results, PREDICTIONS_HASH: sha256(_text_of(texts))}
        results[RESULTS_HASH] = _hash(results)
        try:
            _replace(self.directory / PREDICTIONS, texts)
            _replace(self.directory / RESULTS, [json.dumps(results, indent=2)])
            for path in (self.directory / RUN, *_files(self.directory, BATCHES)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.directory, error) from None
        return results

    def close(self) -> None:
        """Lets other processes have the directory."""
        if self._lock is not None:
            self._lock.close()

    def _path(self, name: str) -> Path:
        if self.directory is None:
            raise ValueError("a journal in memory has no files")
        stem, dot, ending = name.partition(".")
        return self.directory / f"{stem}{self._suffix}{dot}{ending}"

    def _read(self) -> None:
        """Everything from the compacted files, in place of what is here."""
        empty = Journal()
        self.records, self.done, self.meter = empty.records, empty.done, empty.meter
        self.seconds, self.cached, self.work = empty.seconds, empty.cached, empty.work
        lines = {line["id"]: line for line in _lines(self._path(PREDICTIONS).with_name(PREDICTIONS))}
        for batch in _lines(self._path(BATCHES).with_name(BATCHES)):
            self._add({id_: lines[id_] for id_ in batch["items"]}, batch)

    def _add(self, lines: dict[str, dict[str, Any]], batch: dict[str, Any]) -> None:
        self.records.update(lines)
        self.done.add(batch["batch"])
        self.meter.merge(Meter.from_dict(batch["kept"]))
        self.cached += batch["cached"]
        for arm in self.seconds:
            self.seconds[arm] += batch["seconds"].get(arm, 0.0)
        self.work[batch["rank"]] = self.work.get(batch["rank"], 0) + len(batch["items"])


def ended_run(directory: Path) -> dict[str, Any] | None:
    """The results in a directory; None if there are none, the run has not ended, another version wrote them, or they
    were damaged or changed."""
    try:
        results: dict[str, Any] = json.loads(read_file(directory / RESULTS, MOST_RESULTS))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(results, dict) and results.keys() >= {"run", "dataset", "processes", "seconds", "kept"}
    whole = whole and results.get("schema_version") == SCHEMA_VERSION and results.get(RESULTS_HASH) == _hash(results)
    return results if whole and not (directory / RUN).exists() else None


def predictions_of(directory: Path, results: dict[str, Any]) -> bool:
    """Whether the predictions in a directory are just those that results were made from."""
    try:
        return sha256(read_file(directory / PREDICTIONS, MOST_PREDICTIONS)) == results[PREDICTIONS_HASH]
    except (OSError, DataError):
        return False


def _claim(directory: Path, key: str) -> IO[str]:
    """Makes the directory this run's, and no other process's as long as the returned file is open."""
    directory.mkdir(parents=True, exist_ok=True)
    file = open(directory / RUN, "a+", encoding="utf-8")  # noqa: SIM115 - the lock lives as long as the file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino != os.stat(directory / RUN).st_ino:
            raise BlockingIOError  # the process that had it is ending, and has removed the file
    except (BlockingIOError, FileNotFoundError):
        raise UsageError(
            f"another process is evaluating into {directory}: wait for it, or give -o another one"
        ) from None
    file.seek(0)
    try:
        found = json.loads(file.read())["run"]
    except (ValueError, KeyError, TypeError):  # new, or cut short
        file.truncate(0)
        file.write(json.dumps({"run": key}) + "\n")
        file.flush()
        found = key
    if found != key:
        raise UsageError(f"{directory} holds another run that has not ended: give -o another directory")
    return file


def _compact(directory: Path) -> None:
    """One predictions.jsonl and one batches.jsonl, of finished batches alone; a batch done twice counts once."""
    lines = {line["id"]: line for path in _files(directory, PREDICTIONS) for line in _lines(path)}
    batches = {line["batch"]: line for path in _files(directory, BATCHES) for line in _lines(path)}
    whole = [batch for _, batch in sorted(batches.items()) if all(id_ in lines for id_ in batch["items"])]
    kept = [lines[id_] for batch in whole for id_ in batch["items"]]
    _replace(directory / PREDICTIONS, map(json.dumps, kept))
    _replace(directory / BATCHES, map(json.dumps, whole))
    for name in (PREDICTIONS, BATCHES):
        for path in _files(directory, name):
            if path.name != name:
                path.unlink()


def _files(directory: Path, name: str) -> list[Path]:
    """The file of that name of every process."""
    stem, _, ending = name.partition(".")
    return sorted([*directory.glob(name), *directory.glob(f"{stem}.rank*.{ending}")])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are complete JSON objects."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # empty, or cut short by a kill
        if isinstance(entry, dict):
            yield entry


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    append_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _replace(path: Path, lines: Iterable[str]) -> None:
    write_file(path, _text_of(lines))


def _text_of(lines: Iterable[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _hash(results: dict[str, Any]) -> str:
    """64 hex digits over all else that results say."""
    others = {name: value for name, value in results.items() if name != RESULTS_HASH}
    return sha256(json.dumps(json.loads(json.dumps(others)), sort_keys=True).encode())


def _cannot_write(directory: Path, error: OSError) -> SparsifyError:
    return cannot_write("results", directory, error)
