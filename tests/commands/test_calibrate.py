"""`sparsify calibrate`: its options, what it shows, and that a killed one goes on to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import torch
from command_line import Sparsify, refused
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.calibration.histogram_file import histograms_of
from hf_sparsify.patcher.recipe import load_recipe

ARGUMENTS = ("calibrate", "sparsified", "-d", "many.jsonl", "--samples", "12")
GOES_ON = "interrupted; the same command goes on from here"


@pytest.fixture
def undisturbed(sparsify: Sparsify, recipe: Path) -> dict[str, bytes]:
    """The files of a calibration that nothing disturbs."""
    tiny_language_models.save_questions(Path("many.jsonl"), 20)
    assert sparsify(*ARGUMENTS, "-o", "undisturbed").code == 0
    return written("undisturbed")


def written(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.is_file()}


def record(directory: str = "sparsified") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(directory, "sparsify.json").read_text())["calibration"]
    return found


@pytest.mark.parametrize("calls", [3, 4, 9])
def test_ctrl_c_and_the_same_command_again_give_the_same_bytes(
    calls: int, sparsify: Sparsify, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, left = ScoreHistogram.__call__, calls

    def interrupted(self: ScoreHistogram, chunk: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        observe(self, chunk)

    with monkeypatch.context() as patching:
        patching.setattr(ScoreHistogram, "__call__", interrupted)
        done = sparsify(*ARGUMENTS, "-o", "run")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == GOES_ON
    assert sorted(os.listdir("run")) == [".calibrating-0.safetensors"]
    left = 1000
    asked: list[int] = []

    def counted(self: ScoreHistogram, chunk: Any) -> None:
        asked.append(1)
        observe(self, chunk)

    monkeypatch.setattr(ScoreHistogram, "__call__", counted)
    done = sparsify(*ARGUMENTS, "-o", "run")
    assert done.code == 0, done.err
    items = calls // 2  # of two layers each
    assert f"going on from {items} of 12 items" in done.err
    assert len(asked) == 2 * (12 - items), "what was done is not done again"
    assert written("run") == undisturbed


def test_another_command_starts_anew(
    sparsify: Sparsify, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sparsify.calibration.checkpoint.SECONDS", 0.0)
    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.calibrate.measure_kept", lambda *_: (_ for _ in ()).throw(SystemError))
        with pytest.raises(SystemError):
            sparsify(*ARGUMENTS, "-o", "run", "--k", "3")
    assert sorted(os.listdir("run")) == [".calibrating-0.safetensors"]
    done = sparsify(*ARGUMENTS, "-o", "run")
    assert "going on" not in done.err
    assert written("run") == undisturbed


@pytest.mark.slow
def test_kill_9_and_a_rerun_give_the_same_bytes(sparsify: Sparsify, undisturbed: dict[str, bytes]) -> None:
    program = (
        "from hf_sparsify.calibration import checkpoint; checkpoint.SECONDS = 0.0; import sys; "
        f"sys.argv = {['sparsify', *ARGUMENTS, '-o', 'run']!r}; from hf_sparsify.cli import main; main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while not list(Path().glob("run/.calibrating-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sparsify(*ARGUMENTS, "-o", "run").code == 0
    assert written("run") == undisturbed


def test_what_was_kept_is_shown(sparsify: Sparsify, undisturbed: dict[str, bytes]) -> None:
    done = sparsify(*ARGUMENTS)
    assert "Kept / k on 8 other items, in rows longer than k" in done.out
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.startswith(("model.", "all "))}
    assert list(rows) == ["model.layers.0.self_attn", "model.layers.1.self_attn", "all"]
    assert all(0.5 < float(mean) < 2 and float(p5) <= float(p95) for mean, p5, p95, *_ in rows.values())
    done = sparsify(*ARGUMENTS[:-1], "20")
    assert "Kept / k on 8 of these items, for want of others" in done.out


def test_what_the_recipe_says_of_it(sparsify: Sparsify, recipe: Path) -> None:
    options = ("--placement", "max-relative", "--compensation", "sdc+vmc", "--denominator", "offline")
    how = ("--estimator", "mean", "--alpha", "0.1", "--activations", "dense", "--distractors", "1")
    done = sparsify("calibrate", "-d", "q.jsonl", "--samples", "4", *options, *how)
    assert done.code == 0, done.err
    assert "mean, alpha = 0.1, max-relative, dense activations" in done.out
    found = record()
    expected = {
        "placement": "max-relative",
        "estimator": "mean",
        "alpha": 0.1,
        "activations": "dense",
        "distractors": 1,
        "budget": "k = 4",
    }
    assert found.items() >= expected.items()
    assert (len(found["weights"]), len(found["histograms_sha256"])) == (64, 64)
    loaded = load_recipe("sparsified")
    assert all(table.dropped is not None for table in loaded.thresholds.values())
    assert set(histograms_of(loaded, recipe)) == set(loaded.plan)
    assert sparsify("validate").code == 0
    assert sparsify("eval", "-d", "q.jsonl", "--limit", "2", "--max-new-tokens", "2", "--max-drop", "100").code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--compensation none --denominator exact", ("none", "max-relative", "exact")),
        ("--placement post-softmax", ("sdc+vmc", "post-softmax", "exact")),
        ("--placement post-softmax --denominator rounded", ("sdc+vmc", "post-softmax", "rounded")),
        ("--placement pre-softmax", ("sdc+vmc", "pre-softmax", "offline")),
    ],
)
def test_what_is_asked_for_is_applied_at_once(
    options: str, expected: tuple[str, str, str], sparsify: Sparsify, recipe: Path
) -> None:
    command = ("calibrate", "-d", "q.jsonl", "--samples", "2")
    assert sparsify("patch", "llama", "--k", "4", "--attention", "top-theta", "--force", "--no-verify").code == 0
    assert sparsify(*command, "--placement", "max-relative", "--denominator", "offline").code == 0
    done = sparsify(*command, *options.split())
    assert done.code == 0, done.err
    methods = load_recipe("sparsified").plan.values()
    assert {(m.compensation, m.placement, m.denominator) for m in methods} == {expected}  # type: ignore[union-attr]
    assert sparsify("validate", "--no-verify").code == 0


@pytest.mark.parametrize("target", ["sparsified", "llama", None])
def test_options_are_refused_before_the_model_is_loaded(
    target: str | None, sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sparsify.commands.target.load_named", None)
    monkeypatch.setattr("hf_sparsify.evaluation.sources.read_items", None)
    command = ("calibrate", *([target] if target else []), "-d", "q.jsonl", "--denominator", "offline")
    refused(sparsify(*command), 2, "saves nothing with post-softmax placement")


def test_a_mistake_costs_another_calibration_nothing(
    sparsify: Sparsify, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.calibration.checkpoint.SECONDS", 0.0)
        patching.setattr("hf_sparsify.commands.calibrate.measure_kept", lambda *_: (_ for _ in ()).throw(SystemError))
        with pytest.raises(SystemError):
            sparsify(*ARGUMENTS, "-o", "run")
    refused(sparsify(*ARGUMENTS, "-o", "run", "--k", "100000"), 1, "use a smaller --k")
    done = sparsify(*ARGUMENTS, "-o", "run")
    assert "going on from " in done.err
    assert written("run") == undisturbed


def test_sdc_alone_is_warned_about(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("calibrate", "-d", "q.jsonl", "--compensation", "sdc", "-q")
    assert done.code == 0
    assert "sdc alone is the worst choice measured" in done.err


def test_a_recipe_needs_no_histograms(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    (recipe / "histograms.safetensors").unlink()
    assert sparsify("validate").code == 0
    assert sparsify("eval", "-d", "q.jsonl", "--limit", "2", "--max-new-tokens", "2", "--max-drop", "100").code == 0


def test_distractors_need_passages(sparsify: Sparsify, recipe: Path) -> None:
    refused(sparsify("calibrate", "-d", "q.jsonl", "--distractors", "50"), 2, "other passages without a gold answer")
