"""The terminal side of the commands: messages and progress on stderr, results on stdout, errors as exit codes."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .errors import OUT_OF_MEMORY, SparsifyError, is_out_of_memory
from .processes import is_main_process

INTERRUPTED = 130
PLAIN_WIDTH = 160
# Of tables with long names or many columns; on a narrower terminal its own line breaks beat cut words.
WIDE = 120

Command = TypeVar("Command", bound=Callable[..., Any])


def results_console(at_least: int = 0) -> Console:
    """stdout. Tables may be `at_least` so wide on any terminal, and PLAIN_WIDTH where it is none."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, at_least) if sys.stdout.isatty() else PLAIN_WIDTH
    return console


def messages_console() -> Console:
    """stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str, *, quiet: bool = False) -> None:
    """A line on stderr, of the first process alone; errors come from all."""
    if not quiet and (is_main_process() or text.startswith("error: ")):
        messages_console().print(text)


def set_up(*, quiet: bool, verbose: bool) -> None:
    """Logging for one command. Libraries stay silent unless asked; our own warnings are always shown."""
    if quiet or not sys.stderr.isatty():
        # Bars redraw themselves, which makes one endless line of a log.
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING, force=True)
    from transformers.utils import logging as transformers_logging

    if verbose:
        transformers_logging.set_verbosity_info()
        return
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if quiet or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


@contextmanager
def progress(total: int, what: str, *, quiet: bool = False, processes: int = 1) -> Iterator[Callable[[int], None]]:
    """Yields advance(n). A bar with the time left on a terminal, else a line for every tenth.

    processes: those that share the work; the first shows its own part as if all were as far.
    """
    if processes > 1:
        total, what = -(-total // processes), f"{what}, process 1 of {processes}"
    if quiet or not is_main_process() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == "1":
        yield lambda count: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=messages_console()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _PlainProgress(total, what)


class _PlainProgress:
    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what
        self.done = 0
        self.started = time.monotonic()

    def __call__(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        # Shares of several processes differ by a batch.
        self.total = max(self.total, self.done)
        if self.done * 10 // self.total > before * 10 // self.total:
            spent = time.monotonic() - self.started
            left = f"about {spent / self.done * (self.total - self.done):.0f} s left"
            say(f"{self.what}: {self.done} of {self.total}, {left if self.done < self.total else f'{spent:.0f} s'}")


@contextmanager
def warned_once() -> Iterator[None]:
    """What is logged again in the same words is not shown again inside the block, for work that repeats itself."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = record.levelno < logging.WARNING or text not in told
        told.add(text)
        return new

    handlers = logging.getLogger().handlers[:]
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


@contextmanager
def resumable() -> Iterator[None]:
    """What Ctrl-C stops inside the block goes on with the same command."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from None


def command_line() -> str:
    """What was typed."""
    return shlex.join(["sparsify", *sys.argv[1:]])


def exit_codes(command: Command) -> Command:
    """Turns exceptions of a command into one sentence on stderr and the exit code of errors.py; 130 for Ctrl-C.

    HF_DEBUG=1 adds the traceback; an error that is not one of ours always shows it.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            say(str(interrupt) or "interrupted; nothing half-written was left behind")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output is gone; closing stdout again at exit would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except SparsifyError as error:
            if os.environ.get("HF_DEBUG") == "1":
                traceback.print_exc()
            say(f"error: {error}")
            sys.exit(error.exit_code)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            say(f"error: {OUT_OF_MEMORY}")
            sys.exit(1)

    return run  # type: ignore[return-value]
