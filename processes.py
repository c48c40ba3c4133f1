"""The processes of one command: a single one, or those that torchrun or accelerate launch has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from .errors import FAILURES, SparsifyError, one_sentence

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's rank among `count`. Rank 0 is the one that prints and writes results."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Processes:
        """Meets the other processes, if a launcher started several (it sets WORLD_SIZE); else this one is alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch
        from accelerate import PartialState

        # They meet at the end alone, and after a resume one may have little to do and wait long for the others.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Any) -> Any:
        """Every count-th of a sequence, from this rank's place on."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, on each of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def in_turn(self, read: Callable[[], T]) -> T:
        """What a function returns on this process; the others call it when the first one is done."""
        if not self.is_main:
            self.wait()
        found = read()
        if self.is_main:
            self.wait()
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """If one of FAILURES ends the block on any process, it ends on all: a process without one of its own raises
        the sentence of the first that failed, as SparsifyError if it is one there and as RuntimeError if not.

        To be entered by all processes; inside nobody may wait for the others after an error of its own.
        """
        own: Exception | None = None
        try:
            yield
        except FAILURES as error:
            own = error
        said = self.gather(None if own is None else (one_sentence(own), isinstance(own, SparsifyError)))
        if own is not None:
            raise own
        for sentence, is_ours in filter(None, said):
            raise SparsifyError(sentence) if is_ours else RuntimeError(sentence)


def is_main_process() -> bool:
    """Whether this process prints; known before anything heavy is imported."""
    return os.environ.get("RANK", "0") == "0"
