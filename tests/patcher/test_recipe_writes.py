"""A recipe on disk is at any time the old one or the new one: under faults, kills, and two processes that write it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faulty_disk import FaultyDisk, disk_full
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.calibration.histogram_file import histograms_of, save_calibrated
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.methods import TopTheta
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.recipe import BaseModel, CalibrationRecord, Recipe, load_recipe, save_recipe
from hf_sparsify.patcher.thresholds import ModuleThresholds

FORK = multiprocessing.get_context("fork")


def recipe(k: int) -> Recipe:
    """A calibrated recipe whose every part tells its k."""
    theta = torch.full((2, 2), float(k))
    return Recipe(
        BaseModel("some/model", "causal-lm", "llama", "abc"),
        {"attn": TopTheta(k=k)},
        thresholds={"attn": ModuleThresholds(torch.tensor([4.0, 9.0]), theta, 4, 9)},
        calibration=CalibrationRecord("squad", "train", "f", 16, k, f"k = {k}"),
    )


def save(directory: Path, k: int) -> None:
    save_calibrated(recipe(k), {"attn": ScoreHistogram(Budget(k=k))}, directory)


def k_of(directory: Path) -> int:
    """The k of the recipe in a directory; its parts have to agree."""
    loaded = load_recipe(directory)
    [method], [table] = loaded.plan.values(), loaded.thresholds.values()
    assert isinstance(method, TopTheta)
    assert loaded.calibration is not None
    assert method.k == table.theta[0, 0] == loaded.calibration.seed
    return int(method.k or 0)


CALLS = 18  # to the file system, of writing a calibrated recipe over another


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("failing", range(1, CALLS))  # the first looks whether the directory is there
def test_a_fault_leaves_the_old_recipe_or_the_new_one(failing: int, stays: bool, tmp_path: Path) -> None:
    save(tmp_path, 1)
    said = f"cannot write the recipe to {tmp_path}: No space left on device"
    tidying = failing >= CALLS - 3  # the new one counts already
    disk = FaultyDisk(tmp_path, failing, disk_full, stays)
    with nullcontext() if tidying else pytest.raises(SparsifyError, match=re.escape(said)), disk.at_work():
        save(tmp_path, 2)
    k = k_of(tmp_path)
    assert histograms_of(load_recipe(tmp_path), tmp_path)["attn"].budget == Budget(k=k)
    save(tmp_path, 3)
    assert k_of(tmp_path) == 3
    assert sorted(os.listdir(tmp_path)) == ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]


def test_those_were_all_calls(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with FaultyDisk(tmp_path).at_work() as disk:
        save(tmp_path, 2)
    assert len(disk.calls) == CALLS, disk.calls


@pytest.mark.parametrize("failing", range(5))
def test_a_fault_in_the_first_write_leaves_no_recipe(failing: int, tmp_path: Path) -> None:
    with FaultyDisk(tmp_path, failing, stays=True).at_work(), pytest.raises(SparsifyError, match="No space left"):
        save_recipe(replace(recipe(1), thresholds={}), tmp_path / "new")
    assert not (tmp_path / "new").exists() or not os.listdir(tmp_path / "new")


def in_turn(directory: Path, ks: tuple[int, ...], times: int) -> None:
    for number in range(times):
        save(directory, ks[number % len(ks)])


def started(work: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def test_a_kill_leaves_the_old_recipe_or_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    seen = set()
    for round_ in range(25):
        before = (tmp_path / "sparsify.json").stat().st_mtime_ns
        writer = started(in_turn, tmp_path, (2, 1), 10**6)
        while (tmp_path / "sparsify.json").stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(0.003 * round_)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        seen.add(k_of(tmp_path))
    assert seen == {1, 2}
    save(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    save(tmp_path, 1)
    writers = [started(in_turn, tmp_path, (k, k + 1), 60) for k in (1, 5)]
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(k_of(tmp_path))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert set(seen) <= {1, 2, 5, 6}
    assert len(set(seen)) > 1, "it was read while it changed"
    assert k_of(tmp_path) in (2, 6)
    assert sorted(os.listdir(tmp_path)) == ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]
