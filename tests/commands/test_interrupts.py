"""Ctrl-C leaves nothing half-written, and an evaluation goes on where it was stopped; the installed commands run."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify, contents

EVAL = ("eval", "-d", "q.jsonl", "--max-new-tokens", "2", "--batch-size", "2", "--max-drop", "100")
GOES_ON = "interrupted; the same command goes on from here"
KLS = "hf_sparsify.evaluation.tasks.generative.kl_divergence"


def interrupt(patching: pytest.MonkeyPatch, where: str, calls: int = 0) -> None:
    """Ctrl-C in a function, after so many calls that go well."""
    module, _, name = where.rpartition(".")
    function, left = getattr(sys.modules[module], name), calls

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return function(*arguments, **options)

    patching.setattr(where, called)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("eval", "json.dumps"),
        ("eval", "hf_sparsify.evaluation.sources.read_items"),
        ("calibrate", "hf_sparsify.calibration.histogram.bins_of"),
        ("calibrate", "hf_sparsify.patcher.recipe.thresholds_bytes"),
    ],
)
def test_ctrl_c_leaves_nothing_half_written(
    command: str, where: str, sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(recipe.parent)
    with monkeypatch.context() as patching:
        interrupt(patching, where)
        done = sparsify(command, "-d", "q.jsonl", "--max-new-tokens" if command == "eval" else "--samples", "2")
    assert (done.code, done.out) == (130, "")
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    assert contents(recipe.parent) == before
    assert not list(recipe.rglob(".writing-*"))


@pytest.mark.parametrize(
    ("where", "calls", "batches"),
    [
        (KLS, 0, 0),
        (KLS, 2, 2),
        ("hf_sparsify.evaluation.journal._append", 2, 1),
        ("hf_sparsify.evaluation.journal._append", 5, 2),  # the items of the third batch are there, its line is not
        ("hf_sparsify.evaluation.dense_cache._append", 1, 1),
        ("hf_sparsify.commands.evaluate.describe", 0, 3),
        ("hf_sparsify.evaluation.journal._replace", 2, 3),  # the two before were for the empty files
        ("hf_sparsify.evaluation.journal._replace", 3, 3),
    ],
)
def test_an_interrupted_evaluation_goes_on(
    where: str, calls: int, batches: int, sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sparsify(*EVAL, "-o", "undisturbed", "--no-cache").code == 0
    before = contents(recipe.parent)
    with monkeypatch.context() as patching:
        interrupt(patching, where, calls)
        done = sparsify(*EVAL)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == GOES_ON
    assert "Traceback" not in done.err
    gc.collect()  # closes the files of the interrupted run, as the end of its process does
    (run,) = (recipe / "eval").iterdir()
    assert {"batches.jsonl", "predictions.jsonl", "run.json"} <= set(os.listdir(run))
    known = (run / "batches.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch"] for line in known] == list(range(batches))
    assert {name: content for name, content in contents(recipe.parent).items() if run.name not in name} == before

    asked: list[int] = []
    with monkeypatch.context() as patching:
        from hf_sparsify.evaluation.tasks.generative import Generative

        predict = Generative.predict

        def counted(self: Generative, batch: Any, meter: Any = None) -> Any:
            asked.append(len(batch) if meter is not None else 0)
            return predict(self, batch, meter)

        patching.setattr(Generative, "predict", counted)
        done = sparsify(*EVAL)
    assert done.code == 0, done.err
    assert f"wrote sparsified/eval/{run.name}" in done.err
    assert sum(asked) == 6 - 2 * batches, "what was done is not done again"
    assert sorted(os.listdir(run)) == ["predictions.jsonl", "results.json"]
    assert (run / "predictions.jsonl").read_bytes() == Path("undisturbed/predictions.jsonl").read_bytes()
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (Path("undisturbed"), run))
    differ = {name for name in first if first[name] != second[name]}
    assert differ <= {"run_id", "command", "seconds", "dense_from_cache", "sha256"}


@pytest.mark.slow
def test_a_real_ctrl_c(sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 120)
    before = contents(recipe.parent)
    arguments = ["sparsify", "eval", "-d", "many.jsonl", "--max-new-tokens", "8", *EVAL[-4:]]
    # Tests in a shell's background inherit that Ctrl-C is ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; import sys; from hf_sparsify.cli import main; sys.argv = {arguments!r}; main()"
    pipe = subprocess.PIPE
    # As many threads as the tests have: sums in another order end in other digits.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True, env=environment)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading")
    assert process.stderr.readline().startswith("evaluating: 12 of 120")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == GOES_ON
    assert "Traceback" not in err
    (run,) = (recipe / "eval").iterdir()
    assert sorted(os.listdir(run)) == ["batches.jsonl", "predictions.jsonl", "run.json"]
    assert {name: content for name, content in contents(recipe.parent).items() if run.name not in name} == before

    assert sparsify(*arguments[1:]).code == 0
    # Some of the questions are the same, so that a cache of its own is part of an undisturbed run.
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(recipe.parent / "elsewhere"))
    assert sparsify(*arguments[1:], "-o", "undisturbed").code == 0
    assert sorted(os.listdir(run)) == ["predictions.jsonl", "results.json"]
    assert (run / "predictions.jsonl").read_bytes() == Path("undisturbed/predictions.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparsify", "hf-sparsify"])
def test_the_installed_command(name: str, recipe: Path) -> None:
    command = Path(sys.executable).with_name(name)
    if not command.exists():
        pytest.skip(f"{name} is not installed beside this Python")
    piped = subprocess.run(f"{command} methods | head -n 1", shell=True, capture_output=True, text=True, check=True)
    assert piped.stdout.split() == ["method", "what", "it", "does", "paper"]
    assert piped.stderr == ""
    bad = subprocess.run([command, "eval", "nowhere/at-all"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "unknown model" in bad.stderr
