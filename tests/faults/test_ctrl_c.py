"""Ctrl-C in the middle of a call to the file system: exit code 130, the old state or the new, a second run works."""

from __future__ import annotations

import pytest
from disk_faults import COMMANDS, Undisturbed, fresh, is_benched, left_over, moments, results, saving_often
from fault_drill import Drill, run
from faulty_disk import FaultyDisk


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c(name: str, drill: Drill) -> None:
    command, folder = COMMANDS[name], drill.folder
    undisturbed = Undisturbed.of(command, folder)
    for failing in moments(undisturbed.count, 3):
        fresh(folder)
        with saving_often(), FaultyDisk(folder, failing, KeyboardInterrupt).at_work():
            ended = run(*command)
        where = f"call {failing} of {undisturbed.count}: {ended}"
        lost = undisturbed.lost(folder)
        whole = is_benched(folder)
        again = run(*command)
        lost = lost or results(folder) != undisturbed.expected
        drill.count("Ctrl-C", ended, lost=lost)
        assert not lost, where
        assert (ended.code, ended.out) == (130, ""), where
        assert "interrupted; " in ended.err, where
        assert again.code == (2 if whole else 0), f"{where}, then {again}"
        assert left_over(folder) == [], where
