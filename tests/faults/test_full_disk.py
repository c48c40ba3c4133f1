"""A disk that is full from some call on, or for one call: one sentence, the old state or the new one, a second run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from disk_faults import (
    COMMANDS,
    Undisturbed,
    fresh,
    is_benched,
    left_over,
    moments,
    recipes,
    results,
    saving_often,
)
from fault_drill import Drill, run
from faulty_disk import FaultyDisk, disk_full

MOST = 14  # calls of one command that fail
FULL = "No space left on device"


@pytest.mark.parametrize("stays", [False, True], ids=["one-call", "from-then-on"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, stays: bool, drill: Drill) -> None:
    command, folder = COMMANDS[name], drill.folder
    undisturbed = Undisturbed.of(command, folder)
    for failing in moments(undisturbed.count, MOST):
        fresh(folder)
        with saving_often(), FaultyDisk(folder, failing, disk_full, stays).at_work():
            ended = run(*command)
        where = f"call {failing} of {undisturbed.count}: {ended}"
        lost = undisturbed.lost(folder)
        drill.count("full disk", ended, lost=lost)
        assert not lost, where
        if ended.code == 0:
            # Only tidying failed: old files that nobody reads may still be there.
            assert recipes(folder) == undisturbed.new[0], where
        else:
            assert ended.code == 1, where
            assert "cannot write the " in ended.err, where
            assert FULL in ended.err, where
        whole = is_benched(folder)
        again = run(*command)
        assert again.code == (2 if whole else 0), f"{where}, then {again}"
        assert results(folder) == undisturbed.expected, where
        assert left_over(folder) == [], where


# Size of the disk, bytes that are taken already, the command, and what it cannot write.
REALLY = [
    ("8k", 8192, ("patch", "llama", "--no-verify", "-q"), "recipe"),
    ("40k", 0, ("patch", "llama", "--no-verify", "--save-model", "-q"), "model"),
    ("8k", 8192, ("eval", "plain", "-d", "q.jsonl", "--max-new-tokens", "2", "--no-cache", "-q"), "results"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "taken", "command", "what"), REALLY, ids=[row[-1] for row in REALLY])
def test_a_disk_that_is_really_full(size: str, taken: int, command: tuple[str, ...], what: str, drill: Drill) -> None:
    """A memory disk of few bytes, in a process of its own."""
    place = drill.folder / "out"
    place.mkdir()
    mount = f"mount -t tmpfs -o size={size} none out && head -c {taken} /dev/zero > out/other"
    if shutil.which("unshare") is None or in_namespace(mount).returncode:
        pytest.skip("this system lets nobody mount a memory disk")
    done = in_namespace(
        f'{mount}; "$@"; echo code $?; find out/made -type f',
        sys.executable,
        "-m",
        "hf_sparsify.cli",
        *command,
        "-o",
        "out/made",
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert f"error: cannot write the {what} to out/made: " in done.stderr
    assert FULL in done.stderr
    code, *left = done.stdout.splitlines()
    assert code == "code 1"
    assert [path for path in left if not path.endswith(("/run.json", ".jsonl"))] == [], "a run goes on from these"


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where mounting is allowed, and what is mounted goes with it."""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
