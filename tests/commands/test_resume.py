"""kill -9 in the middle of `sparsify eval`, several processes, and what a second run finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_language_models
import torch
from command_line import Sparsify
from hf_sparsify.patcher.recipe import load_recipe

QUESTIONS = 120
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ARGUMENTS = (
    "eval",
    "sparsified",
    "-d",
    "many.jsonl",
    "--batch-size",
    "2",
    "--max-new-tokens",
    "3",
    "--max-drop",
    "100",
)


@pytest.fixture
def expected(sparsify: Sparsify, recipe: Path) -> bytes:
    """predictions.jsonl of a run that nothing disturbs."""
    tiny_language_models.save_questions(Path("many.jsonl"), QUESTIONS)
    assert sparsify(*ARGUMENTS, "-o", "undisturbed", "--no-cache", "-q").code == 0
    return Path("undisturbed/predictions.jsonl").read_bytes()


def start(*arguments: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "hf_sparsify.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_kill_9_and_a_rerun_give_the_same_file(sparsify: Sparsify, expected: bytes) -> None:
    process = start(*ARGUMENTS, "-o", "run")
    while lines(Path("run/batches.jsonl")) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = lines(Path("run/batches.jsonl"))
    assert 5 <= done < QUESTIONS // 2, "killed in the middle"
    assert not Path("run/results.json").exists()
    with Path("run/predictions.jsonl").open("a") as file:
        file.write('{"id": "q1", "inp')  # what a machine that loses power leaves

    again = sparsify(*ARGUMENTS, "-o", "run")
    assert again.code == 0, again.err
    assert Path("run/predictions.jsonl").read_bytes() == expected
    ids = [json.loads(line)["id"] for line in expected.decode().splitlines()]
    assert ids == [f"q{index}" for index in range(QUESTIONS)]
    assert sorted(os.listdir("run")) == ["predictions.jsonl", "results.json"]
    first, second = (json.loads(Path(run, "results.json").read_text()) for run in ("undisturbed", "run"))
    for key in ("scores", "intervals", "verdict", "flips", "distance", "kept", "dataset", "near_ties"):
        assert first[key] == second[key], key


@pytest.mark.slow
def test_two_processes_give_what_one_gives(expected: bytes) -> None:
    process = start(*ARGUMENTS, "-o", "shared", "--no-cache", launcher=TORCHRUN)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("items of many.jsonl") == 1, "one process prints"
    assert Path("shared/predictions.jsonl").read_bytes() == expected
    assert sorted(os.listdir("shared")) == ["predictions.jsonl", "results.json"]
    alone, shared = (json.loads(Path(run, "results.json").read_text()) for run in ("undisturbed", "shared"))
    assert shared["processes"] == {"count": 2, "items": {"0": 60, "1": 60}}
    for key in ("scores", "intervals", "verdict", "kept", "distance"):
        assert alone[key] == shared[key], key


@pytest.mark.slow
def test_two_processes_calibrate_as_one(sparsify: Sparsify, recipe: Path) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 9)
    options = ("calibrate", "sparsified", "-d", "many.jsonl")
    assert sparsify(*options, "-o", "alone").code == 0
    process = start(*options, "-o", "shared", launcher=TORCHRUN)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("Calibrated on 9") == 1
    alone, shared = load_recipe("alone"), load_recipe("shared")
    assert shared.calibration == alone.calibration
    assert shared.thresholds.keys() == alone.thresholds.keys()
    for name, table in alone.thresholds.items():
        other = shared.thresholds[name]
        assert torch.equal(other.theta, table.theta)
        assert torch.equal(other.lengths, table.lengths)
        assert (other.shortest, other.longest) == (table.shortest, table.longest)


def test_the_dense_model_runs_once_for_all_recipes(
    sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_sparsify.evaluation.tasks.generative import Generative

    metered: list[bool] = []
    predict = Generative.predict

    def counted(self: Generative, batch: object, meter: object = None) -> object:
        metered.append(meter is not None)
        return predict(self, batch, meter)  # type: ignore[arg-type]

    monkeypatch.setattr(Generative, "predict", counted)
    ask = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100")
    assert sparsify("patch", "llama", "--k", "2", "--no-verify", "-o", "two").code == 0
    assert sparsify("eval", "sparsified", "two", *ask).code == 0
    assert metered == [False, True, True]
    assert sparsify("eval", "sparsified", *ask).code == 0
    assert metered == [False, True, True], "an ended run is only judged anew"
    assert sparsify("patch", "llama", "--k", "3", "--no-verify", "-o", "three").code == 0
    done = sparsify("eval", "three", *ask, "--json")
    assert metered == [False, True, True, True], "the dense answers were cached"
    assert json.loads(done.out)["dense_from_cache"] == 6
    assert sparsify("eval", "three", *ask, "--no-cache").code == 0
    assert metered[4:] == [False, True]
