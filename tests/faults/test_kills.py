"""kill -9 at calls to the file system, in processes of their own: the old state or the new one, and a second run works.

Between two such calls nothing on the disk changes, so they are all the moments there are.
"""

from __future__ import annotations

import pytest
from disk_faults import COMMANDS, Undisturbed, fresh, is_benched, kill_at, left_over, moments, results
from fault_drill import Drill, run


@pytest.mark.parametrize("name", COMMANDS)
def test_kill_9(name: str, drill: Drill) -> None:
    command, folder = COMMANDS[name], drill.folder
    undisturbed = Undisturbed.of(command, folder)
    for failing in moments(undisturbed.count, 4):
        fresh(folder)
        kill_at(failing, command, folder)
        where = f"call {failing} of {undisturbed.count}"
        lost = undisturbed.lost(folder)
        whole = is_benched(folder)
        ended = run(*command)
        lost = lost or results(folder) != undisturbed.expected
        drill.count("kills", ended, lost=lost)
        assert not lost, where
        assert ended.code == (2 if whole else 0), f"{where}: {ended}"
        assert left_over(folder) == [], where
