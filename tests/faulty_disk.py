"""A disk that fails at a chosen call below a directory: full, broken, or interrupted in the middle."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHANGING = ("open", "write", "fsync", "replace", "unlink", "mkdir")


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class FaultyDisk:
    """Counts the calls of `os` that change something below a directory, and lets one of them raise.

    failing: the number of that call, from 0; None only counts. stays: all later calls but for unlink fail too, as on a
    disk that is full. A write that fails has written half of its bytes. calls: what was called, by name.
    """

    directory: Path
    failing: int | None = None
    error: Callable[[], BaseException] = disk_full
    stays: bool = False
    calls: list[str] = field(default_factory=list)
    _opened: set[int] = field(default_factory=set)

    @contextmanager
    def at_work(self) -> Iterator[FaultyDisk]:
        """In this block calls are counted and may fail."""
        real = {name: getattr(os, name) for name in (*CHANGING, "close")}
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(
                os, "open", lambda path, flags, *rest, **more: self._open(real, path, flags, *rest, **more)
            )
            patching.setattr(os, "write", lambda number, data: self._write(real, number, data))
            patching.setattr(os, "fsync", lambda number: self._fsync(real, number))
            patching.setattr(os, "close", lambda number: (self._opened.discard(number), real["close"](number))[1])
            for name in ("replace", "unlink", "mkdir"):
                patching.setattr(os, name, self._on_path(name, real[name]))
            yield self

    def _count(self, name: str) -> None:
        number = len(self.calls)
        self.calls.append(name)
        if self.failing is None:
            return
        if number == self.failing or (self.stays and number > self.failing and name != "unlink"):
            raise self.error()

    def _below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(self.directory.absolute())

    def _open(self, real: dict[str, Any], path: Any, flags: int, *rest: Any, **more: Any) -> int:
        below = self._below(path)
        if below and flags & os.O_CREAT:
            self._count("open")
        number: int = real["open"](path, flags, *rest, **more)
        if below:
            self._opened.add(number)
        return number

    def _write(self, real: dict[str, Any], number: int, data: Any) -> int:
        if number in self._opened:
            try:
                self._count("write")
            except BaseException:
                real["write"](number, data[: len(data) // 2])
                raise
        return int(real["write"](number, data))

    def _fsync(self, real: dict[str, Any], number: int) -> None:
        if number in self._opened:
            self._count("fsync")
        real["fsync"](number)

    def _on_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if self._below(path):
                self._count(name)
            return function(path, *rest, **more)

        return call


@dataclass
class Killing(FaultyDisk):
    """A write has written half of its bytes before."""

    def _write(self, real: dict[str, Any], number: int, data: Any) -> int:
        if number in self._opened and len(self.calls) == self.failing:
            real["write"](number, data[: len(data) // 2])
        return super()._write(real, number, data)


def kill() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    return SystemExit("not reached")
