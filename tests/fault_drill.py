"""Commands with something wrong, and what must hold afterwards: one sentence, a documented exit code, nothing lost."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from hf_sparsify import cli

DOCUMENTED = {0, 1, 2, 3, 4, 5, 130}  # README.md, "Exit codes"
REFUSED = {1, 2, 4}
PROPERTY = "fault drill"  # of a test's report: the columns of its tally
SECONDS = 120  # for one command; longer is a hang
# What a case may make. Everything else in the working directory has to stay.
OWN = ("bad", "out", "sparsified")
BOX = str.maketrans("", "", "│╭╮╰╯─ \n\t")  # usage errors come in a box that breaks lines


@dataclass(frozen=True)
class Case:
    """One command with a bad input.

    named: the message has to hold one of these. surely: it has to be refused; damage may also do no harm. make: puts
    the bad input into the working directory, under a name of OWN.
    """

    arguments: tuple[str, ...]
    named: tuple[str, ...]
    surely: bool = True
    make: Callable[[Path], object] | None = None

    def __str__(self) -> str:
        return " ".join(ascii(part)[:80] for part in self.arguments)


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: None if an exception came out of it. stack: that one's."""

    code: int | None
    out: str
    err: str
    stack: str = ""

    @property
    def error(self) -> str:
        """The message without boxes, spaces and line breaks."""
        return self.err.translate(BOX)


@dataclass
class Tally:
    """What was tried and what came of it, by kind of fault."""

    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """A table."""
        yield f"{'':24}{'tried':>8}{'refused':>9}{'tracebacks':>12}{'data lost':>11}"
        for kind in [*self.tried, "all"]:
            counts = (c.total() if kind == "all" else c[kind] for c in self.columns())
            tried, refused, tracebacks, lost = counts
            yield f"{kind:24}{tried:>8}{refused:>9}{tracebacks:>12}{lost:>11}"

    def add(self, columns: Iterable[Mapping[str, int]]) -> None:
        """Adds the columns of another tally."""
        for column, more in zip(self.columns(), columns, strict=True):
            column.update(more)

    def columns(self) -> tuple[Counter[str], ...]:
        """In the order of the table."""
        return self.tried, self.refused, self.tracebacks, self.lost


@dataclass
class Drill:
    """Runs cases in a working directory and counts. problems: one line for each thing that must not be."""

    folder: Path
    tally: Tally
    problems: list[str] = field(default_factory=list)

    def check(self, kind: str, case: Case) -> None:
        """Runs one case, looks at what came of it, and tidies up."""
        if case.make is not None:
            case.make(self.folder)
        before = stamps(self.folder)
        ended = run(*case.arguments)
        after = stamps(self.folder)
        self._count(kind, case, ended, before, after)
        self.tidy()

    def tidy(self) -> None:
        """Removes what cases and commands have made."""
        for path in self.folder.iterdir():
            if path.name.startswith(OWN):
                remove(path)

    def count(self, kind: str, ended: Ended, *, lost: bool) -> None:
        """Counts one fault that a test made itself. ended: the command that met it, or the one after."""
        self.tally.tried[kind] += 1
        self.tally.refused[kind] += ended.code in REFUSED
        self.tally.tracebacks[kind] += bool(ended.stack) or "Traceback" in ended.err
        self.tally.lost[kind] += lost

    def _count(self, kind: str, case: Case, ended: Ended, before: dict[str, object], after: dict[str, object]) -> None:
        tally = self.tally
        tally.tried[kind] += 1
        tally.refused[kind] += ended.code in REFUSED
        if ended.stack or "Traceback" in ended.err:
            tally.tracebacks[kind] += 1
            self._problem(case, ended.stack[-1500:] or ended.err[-1500:])
        elif ended.code not in DOCUMENTED:
            self._problem(case, f"exit code {ended.code}")
        elif ended.code in REFUSED:
            self._check_message(case, ended)
        elif case.surely:
            self._problem(case, f"was taken, exit code {ended.code}: {ended.err[-200:]}")
        kept = before if ended.code in REFUSED else {n: s for n, s in before.items() if not n.startswith(OWN)}
        if gone := [name for name, stamp in kept.items() if after.get(name) != stamp]:
            tally.lost[kind] += 1
            self._problem(case, f"changed {gone[:4]}")
        new = sorted(after.keys() - before.keys())
        if "out/run.json" in new:  # an evaluation that began keeps what it has, to go on from there
            new = [name for name in new if not name.startswith("out")]
        if more := [name for name in new if ended.code in REFUSED or not name.startswith(OWN)]:
            self._problem(case, f"left {more[:4]}")

    def _check_message(self, case: Case, ended: Ended) -> None:
        if ended.out:
            self._problem(case, f"wrote to stdout: {ended.out[:100]}")
        if not any(_shown(name) in ended.error for name in case.named):
            self._problem(case, f"exit code {ended.code}; none of {case.named} in: {ended.err[-300:]}")

    def _problem(self, case: Case, what: str) -> None:
        self.problems.append(f"sparsify {case}\n    {what}")


def run(*arguments: str) -> Ended:
    """Runs `sparsify ARGUMENTS` in this process, with streams as a terminal in UTF-8 has them."""
    out, err = _stream("strict"), _stream("backslashreplace")
    argv = sys.argv
    sys.argv = ["sparsify", *arguments]
    code: int | None = None
    stack = ""
    try:
        with _quiet_after(), _alarm(), redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        stack = traceback.format_exc()
    finally:
        sys.argv = argv
    return Ended(code, _text(out), _text(err), stack)


def _shown(text: str) -> str:
    """A name as a message has it, without boxes and spaces."""
    return text.encode("utf-8", "backslashreplace").decode().translate(BOX)


def stamps(folder: Path) -> dict[str, object]:
    """Every path below a folder with what changes when somebody writes to it."""
    found: dict[str, object] = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            # A directory's own time changes when a lock or a scratch file comes and goes.
            isdir = name in folders
            found[os.path.relpath(path, folder)] = (
                "directory" if isdir else (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_mode)
            )
    return found


def remove(path: Path) -> None:
    """A file, a link, a pipe or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextmanager
def _quiet_after() -> Iterator[None]:
    """Puts back what a command sets for the libraries."""
    from transformers.utils import logging as transformers_logging

    verbosity, handlers = transformers_logging.get_verbosity(), logging.getLogger().handlers[:]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logging.getLogger().handlers[:] = handlers


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"nothing came in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
