"""Commands that write, and how to tell what they left: for disks that fail and processes that are killed."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_files import BENCH
from fault_drill import run
from faulty_disk import FaultyDisk, Killing, kill
from hf_sparsify.calibration import checkpoint
from hf_sparsify.files import SCRATCH
from hf_sparsify.patcher.recipe import RECIPE_FILE, load_recipe

ASK = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "--batch-size", "1", "--no-cache")
ELSEWHERE = ("--calibrate-on", "train.jsonl", "--samples", "2")
TUNE = ("tune", "llama", "--attention", "top-theta", *ELSEWHERE, *ASK)
# bad/ is a calibrated recipe with a chart, bad-tuned/ one that was tuned to another keep rate, out/ is not there.
COMMANDS: dict[str, tuple[str, ...]] = {
    "patch a new recipe": ("patch", "llama", "--k", "3", "--no-verify", "-o", "out"),
    "patch over another": ("patch", "llama", "--k", "3", "--no-verify", "-o", "bad", "--force"),
    "patch --save-model": ("patch", "llama", "--k", "3", "--no-verify", "--save-model", "-o", "bad", "--force"),
    "patch --thresholds": ("patch", "--thresholds", "bad", "--k", "3", "-o", "bad", "--force"),
    "calibrate": ("calibrate", "bad", "-d", "q.jsonl", "--k", "3"),
    "eval": ("eval", "bad", *ASK, "-o", "out"),
    "sweep": ("sweep", "llama", "--methods", "top-theta", "--keep", "0.5,0.2", *ELSEWHERE, *ASK, "-o", "out"),
    "tune over another": (*TUNE, "--keep", "0.3", "-o", "bad-tuned", "--force"),
    "plot": ("plot", "bad", "-d", "q.jsonl"),
    "bench": ("bench", "bad", *BENCH),
}
# What a result consists of, and what is the same whenever it is made.
FILES = (
    *(RECIPE_FILE, "thresholds.safetensors", "histograms.safetensors", "predictions.jsonl", "config.json"),
    *("tune.json", "sensitivity.json", "thresholds.png", "kept.png", "pattern.png"),
)
PLACES = ("bad", "bad-tuned", "out")
LEFT_OVER = (SCRATCH, ".saving", checkpoint.PREFIX)


def fresh(folder: Path) -> None:
    """The working directory as the commands expect it."""
    for name in PLACES:
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "done", folder / "bad")
    shutil.copytree(folder / "tuned", folder / "bad-tuned")
    (folder / "bad" / "plots").mkdir()
    (folder / "bad" / "plots" / "kept.png").write_bytes(b"an older chart")


def moments(count: int, most: int) -> list[int]:
    """Of so many calls some that are to fail, spread over all: the first, the last, and at most `most` - 1 others."""
    return sorted({count * part // most for part in range(most)} | {count - 1})


def kill_at(failing: int, command: tuple[str, ...], folder: Path) -> None:
    """Runs a command in a process of its own that kills itself at a call to the file system."""
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(command, folder, failing))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL, f"call {failing} of {command}"


def _killed(command: tuple[str, ...], folder: Path, failing: int) -> None:
    with saving_often(), Killing(folder, failing, kill).at_work():
        run(*command)


@contextmanager
def saving_often() -> Iterator[None]:
    """Calibration keeps what it has after every item."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(checkpoint, "SECONDS", 0.0)
        yield


def calls_of(command: tuple[str, ...], folder: Path) -> int:
    """How often a command that nobody disturbs changes something on the disk."""
    fresh(folder)
    with saving_often(), FaultyDisk(folder).at_work() as disk:
        ended = run(*command)
    assert ended.code == 0, ended
    return len(disk.calls)


def results(folder: Path) -> dict[str, bytes]:
    """The contents of FILES in PLACES."""
    paths = [path for name in PLACES for path in sorted((folder / name).rglob("*")) if path.name in FILES]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def recipes(folder: Path) -> dict[str, object]:
    """What loading finds in PLACES; raises what load_recipe raises."""
    found: dict[str, object] = {}
    for name in PLACES:
        if (folder / name / RECIPE_FILE).exists():
            recipe = load_recipe(folder / name)
            tables = {module: table.theta.tolist() for module, table in recipe.thresholds.items()}
            found[name] = {**recipe.to_dict(), "thresholds": tables}
    return found


def charts(folder: Path) -> dict[str, bytes]:
    """What is there under the name of a chart."""
    return {name: data for name, data in results(folder).items() if name.endswith(".png")}


@dataclass(frozen=True)
class Undisturbed:
    """What a command finds and what it leaves when nobody disturbs it. count: how often it changes the disk."""

    count: int
    old: tuple[dict[str, object], dict[str, bytes]]
    new: tuple[dict[str, object], dict[str, bytes]]
    expected: dict[str, bytes]

    @classmethod
    def of(cls, command: tuple[str, ...], folder: Path) -> Undisturbed:
        """Runs it; the working directory is fresh afterwards."""
        count = calls_of(command, folder)
        new, expected = (recipes(folder), charts(folder)), results(folder)
        fresh(folder)
        return cls(count, (recipes(folder), charts(folder)), new, expected)

    def lost(self, folder: Path) -> bool:
        """Whether a recipe or a chart is neither the old one nor the new one."""
        found = recipes(folder), charts(folder)
        return any(
            there.get(name) not in (old.get(name), new.get(name))
            for there, old, new in zip(found, self.old, self.new, strict=True)
            for name in {*old, *new, *there}
        )


def left_over(folder: Path) -> list[str]:
    """What only a command at work needs."""
    return sorted(path.name for path in folder.rglob(".*") if path.name.startswith(LEFT_OVER))


def is_benched(folder: Path) -> bool:
    """Whether out/ holds all of a benchmark, which is not written over."""
    return (folder / "out" / "bench.json").exists()
