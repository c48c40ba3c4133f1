"""Commands that write, and how to tell what they left: for disks that fail and processes that are killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bad_files import BENCH
from fault_drill import run
from faulty_disk import FaultyDisk
from hf_sparsify.calibration import checkpoint
from hf_sparsify.files import SCRATCH
from hf_sparsify.patcher.recipe import RECIPE_FILE, load_recipe

ASK = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "--batch-size", "1", "--no-cache")
# bad/ is a calibrated recipe, out/ is not there.
COMMANDS: dict[str, tuple[str, ...]] = {
    "patch a new recipe": ("patch", "llama", "--k", "3", "--no-verify", "-o", "out"),
    "patch over another": ("patch", "llama", "--k", "3", "--no-verify", "-o", "bad", "--force"),
    "patch --save-model": ("patch", "llama", "--k", "3", "--no-verify", "--save-model", "-o", "bad", "--force"),
    "patch --thresholds": ("patch", "--thresholds", "bad", "--k", "3", "-o", "bad", "--force"),
    "calibrate": ("calibrate", "bad", "-d", "q.jsonl", "--k", "3"),
    "eval": ("eval", "bad", *ASK, "-o", "out"),
    "sweep": (
        *(
            "sweep",
            "llama",
            "--methods",
            "top-theta",
            "--keep",
            "0.5,0.2",
            "--calibrate-on",
            "train.jsonl",
            "--samples",
            "2",
        ),
        *(*ASK, "-o", "out"),
    ),
    "bench": ("bench", "bad", *BENCH),
}
# What a result consists of, and what is the same whenever it is made.
FILES = (RECIPE_FILE, "thresholds.safetensors", "histograms.safetensors", "predictions.jsonl", "config.json")
LEFT_OVER = (SCRATCH, ".saving", checkpoint.PREFIX)


def fresh(folder: Path) -> None:
    """The working directory as the commands expect it."""
    for name in ("bad", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "done", folder / "bad")


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
    """The contents of FILES in bad/ and out/."""
    paths = [path for name in ("bad", "out") for path in sorted((folder / name).rglob("*")) if path.name in FILES]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def recipes(folder: Path) -> dict[str, object]:
    """What loading finds in bad/ and out/; raises what load_recipe raises."""
    found: dict[str, object] = {}
    for name in ("bad", "out"):
        if (folder / name / RECIPE_FILE).exists():
            recipe = load_recipe(folder / name)
            tables = {module: table.theta.tolist() for module, table in recipe.thresholds.items()}
            found[name] = {**recipe.to_dict(), "thresholds": tables}
    return found


def left_over(folder: Path) -> list[str]:
    """What only a command at work needs."""
    return sorted(path.name for path in folder.rglob(".*") if path.name.startswith(LEFT_OVER))


def is_benched(folder: Path) -> bool:
    """Whether out/ holds all of a benchmark, which is not written over."""
    return (folder / "out" / "bench.json").exists()
