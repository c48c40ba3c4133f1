"""kill -9 at calls to the file system, in processes of their own: the old state or the new one, and a second run works.

Between two such calls nothing on the disk changes, so they are all the moments there are.
"""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest
import vl_convert
from disk_faults import COMMANDS, calls_of, fresh, is_benched, left_over, recipes, results, saving_often
from fault_drill import Drill, run
from faulty_disk import Killing, kill

FORK = multiprocessing.get_context("fork")
PARTS = 5  # moments of a command


def killed(command: tuple[str, ...], folder: Path, failing: int) -> None:
    with pytest.MonkeyPatch.context() as patching, saving_often(), Killing(folder, failing, kill).at_work():
        # Drawing in a process that was forked from one that has drawn never ends.
        patching.setattr(vl_convert, "vegalite_to_png", lambda *spec, **options: b"a picture")
        run(*command)


@pytest.mark.parametrize("name", COMMANDS)
def test_kill_9(name: str, drill: Drill) -> None:
    command, folder = COMMANDS[name], drill.folder
    count = calls_of(command, folder)
    new, expected = recipes(folder), results(folder)
    fresh(folder)
    old = recipes(folder)
    for failing in sorted({count * part // PARTS for part in range(1, PARTS)} | {count - 1}):
        fresh(folder)
        child = FORK.Process(target=killed, args=(command, folder, failing))
        child.start()
        child.join(120)
        where = f"call {failing} of {count}"
        assert child.exitcode == -signal.SIGKILL, where
        found = recipes(folder)
        lost = any(found.get(place) not in (old.get(place), new.get(place)) for place in ("bad", "out"))
        whole = is_benched(folder)
        ended = run(*command)
        lost = lost or results(folder) != expected
        drill.count("kills", ended, lost=lost)
        assert not lost, where
        assert ended.code == (2 if whole else 0), f"{where}: {ended}"
        assert left_over(folder) == [], where
