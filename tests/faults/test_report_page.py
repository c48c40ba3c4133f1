"""`sparsify report` on damaged measurements, a full disk and kills: a sentence, and the old page or the new one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import bad_measurements
import pytest
from disk_faults import kill_at, left_over, moments
from fault_drill import Drill, run
from faulty_disk import FaultyDisk, disk_full

COMMAND = ("report", "done", "-o", "out.html")
OLD = b"an older page"
MOMENTS = 8  # calls of one report that fail


@pytest.fixture
def measured(drill: Drill) -> Drill:
    """With swept/ in the working directory."""
    if not (drill.folder / "swept").exists():
        bad_measurements.make(drill.folder)
    return drill


def test_damaged_measurements(measured: Drill) -> None:
    for case in bad_measurements.cases(random.Random(7), measured.folder, 6):
        measured.check("damaged measurements", case)


def fresh(folder: Path) -> None:
    """Only the old page, without charts and tables."""
    shutil.rmtree(folder / "out-files", ignore_errors=True)
    (folder / "out.html").write_bytes(OLD)


def undisturbed(drill: Drill) -> tuple[bytes, int]:
    """The new page, and how many calls change something on the disk."""
    fresh(drill.folder)
    with FaultyDisk(drill.folder).at_work() as disk:
        assert run(*COMMAND).code == 0
    return (drill.folder / "out.html").read_bytes(), len(disk.calls)


def page_again(drill: Drill) -> bytes:
    """What the same command makes when nothing disturbs it."""
    ended = run(*COMMAND)
    assert ended.code == 0, ended
    assert left_over(drill.folder) == []
    return (drill.folder / "out.html").read_bytes()


@pytest.mark.parametrize("stays", [False, True], ids=["one-call", "from-then-on"])
def test_a_full_disk(stays: bool, drill: Drill) -> None:
    new, count = undisturbed(drill)
    for failing in moments(count, MOMENTS):
        fresh(drill.folder)
        with FaultyDisk(drill.folder, failing, disk_full, stays).at_work():
            ended = run(*COMMAND)
        where = f"call {failing} of {count}: {ended}"
        lost = (drill.folder / "out.html").read_bytes() not in (OLD, new)
        drill.count("full disk", ended, lost=lost)
        assert not lost, where
        assert (ended.code, ended.out) == (1, ""), where
        assert "cannot write the report to out.html: No space left on device" in ended.err, where
        assert page_again(drill) == new, where


def test_kill_9(drill: Drill) -> None:
    new, count = undisturbed(drill)
    for failing in moments(count, 5):
        fresh(drill.folder)
        kill_at(failing, COMMAND, drill.folder)
        lost = (drill.folder / "out.html").read_bytes() not in (OLD, new)
        ended = run(*COMMAND)
        drill.count("kills", ended, lost=lost)
        assert not lost, failing
        assert page_again(drill) == new, failing
