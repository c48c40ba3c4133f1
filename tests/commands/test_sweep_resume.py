"""A sweep that was stopped, killed or shared ends with the files of one that nothing disturbed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify

ASK = (
    *("sweep", "llama", "-d", "many.jsonl", "--calibrate-on", "train.jsonl", "--samples", "4", "--keep", "1.0,0.3,0.1"),
    *("--batch-size", "2", "--max-new-tokens", "3", "--max-drop", "100"),
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
GOES_ON = "interrupted; the same command goes on from here"
# What a run says of itself; all else is the same however often it was stopped.
OF_A_RUN = ("command", "environment", "seconds", "dense_from_cache", "processes", "recipe", "sha256", "run_id")


def outcome(directory: str) -> dict[str, Any]:
    """All that a sweep came to: its cells, the predictions, and the results without what differs between runs."""
    place = Path(directory)
    found = json.loads((place / "sweep.json").read_text())
    made: dict[str, Any] = {key: value for key, value in found.items() if key not in OF_A_RUN}
    for entry in found["cells"]:
        file = place / entry["results"]
        results = json.loads(file.read_text())
        made[entry["name"]] = {key: value for key, value in results.items() if key not in OF_A_RUN}
        made[f"predictions of {entry['name']}"] = file.with_name("predictions.jsonl").read_text()
    recipes = sorted(path for path in place.rglob("*.safetensors"))
    return made | {str(path.relative_to(place)): path.read_bytes() for path in recipes}


def left_over(directory: str) -> list[str]:
    """What only a sweep at work needs."""
    found = (path.name for path in Path(directory).rglob("*"))
    return [name for name in found if name.startswith(".") or name in ("run.json", "batches.jsonl")]


def start(*arguments: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "hf_sparsify.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    "where",
    [
        "hf_sparsify.calibration.histogram.bins_of",
        "hf_sparsify.commands.calibrator.measure_kept",
        "hf_sparsify.sweeping.recipes.save",
        "hf_sparsify.evaluation.tasks.generative.kl_divergence",
        "hf_sparsify.evaluation.journal._replace",
        "hf_sparsify.sweeping.document.write_file",
    ],
)
def test_ctrl_c_and_the_same_command_again(where: str, sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 6)
    assert sparsify(*ASK, "-o", "undisturbed", "--no-cache").code == 0
    for calls in (0, 1):
        module, _, name = where.rpartition(".")
        function, left = getattr(sys.modules[module], name), calls

        def interrupted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return function(*arguments, **options)  # noqa: B023 - called within the loop

        with monkeypatch.context() as patching:
            patching.setattr(where, interrupted)
            done = sparsify(*ASK, "-o", "run")
        assert (done.code, done.out) == (130, "")
        assert done.err.splitlines()[-1] == GOES_ON
        gc.collect()  # closes the files of the interrupted run, as the end of its process does
    done = sparsify(*ASK, "-o", "run")
    assert done.code == 0, done.err
    assert outcome("run") == outcome("undisturbed")
    assert left_over("run") == []


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(sparsify: Sparsify) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 60)
    assert sparsify(*ASK, "-o", "undisturbed", "--no-cache").code == 0
    process = start(*ASK, "-o", "run")
    while process.poll() is None:
        lines = [len(path.read_text().splitlines()) for path in Path("run").rglob("batches.jsonl")]
        if sum(lines) > 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "killed in the middle"
    assert json.loads(Path("run/sweep.json").read_text())["ended"] is False
    done = sparsify(*ASK, "-o", "run")
    assert done.code == 0, done.err
    assert outcome("run") == outcome("undisturbed")
    assert left_over("run") == []


@pytest.mark.slow
def test_two_processes_give_what_one_gives(sparsify: Sparsify) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 20)
    assert sparsify(*ASK, "-o", "undisturbed", "--no-cache").code == 0
    process = start(*ASK, "-o", "shared", "--no-cache", launcher=TORCHRUN)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("6 cells on 20 items of many.jsonl") == 1, "one process prints"
    assert outcome("shared") == outcome("undisturbed")
    assert left_over("shared") == []
    results = next(Path("shared").rglob("results.json"))
    assert json.loads(results.read_text())["processes"]["count"] == 2


FAILS = """
import os, sys
from hf_sparsify import cli
from hf_sparsify.{module} import {name} as function
import hf_sparsify.{module} as module

def failing(*arguments, **options):
    if os.environ["RANK"] == "{rank}":
        raise RuntimeError("broken on one device")
    return function(*arguments, **options)

module.{name} = failing
sys.argv[0] = "sparsify"
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "rank", "failed"),
    [
        ("calibration.run", "_observe", 1, "calibration failed: broken on one device"),
        ("commands.calibrate", "measure_kept", 0, "calibration failed: broken on one device"),
        ("commands.calibrator", "measure_kept", 0, "broken on one device"),
    ],
)
def test_what_fails_on_one_process_fails_on_all(
    module: str, name: str, rank: int, failed: str, sparsify: Sparsify
) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 6)
    Path("fails.py").write_text(FAILS.format(module=module, name=name, rank=rank))
    command = [sys.executable, *TORCHRUN, "fails.py", *ASK, "-o", "shared"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = {entry["name"]: entry for entry in json.loads(Path("shared/sweep.json").read_text())["cells"]}
    assert [found[f"top-theta-keep-{keep}"]["error"] for keep in (1.0, 0.3, 0.1)] == [None, failed, failed]
    assert all(found[f"top-k-keep-{keep}"]["status"] == "done" for keep in (1.0, 0.3, 0.1))


@pytest.mark.slow
def test_two_processes_replace_a_sweep(sparsify: Sparsify) -> None:
    """What was calibrated on other items is gone before any process looks for it."""
    tiny_language_models.save_questions(Path("many.jsonl"), 6)
    assert sparsify(*ASK, "-o", "undisturbed", "--no-cache", "--seed", "1").code == 0
    assert sparsify(*ASK, "-o", "shared").code == 0
    process = start(*ASK, "-o", "shared", "--no-cache", "--seed", "1", "--force", launcher=TORCHRUN)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert outcome("shared") == outcome("undisturbed")
    assert left_over("shared") == []


def test_times_are_for_one_process(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_sparsify.processes import Processes

    monkeypatch.setattr(Processes, "join", classmethod(lambda cls: cls(0, 2)))
    done = sparsify(*ASK, "--bench")
    assert done.code == 2
    assert "--bench times in one process" in done.err
