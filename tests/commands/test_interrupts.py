"""Ctrl-C leaves nothing half-written; the installed commands run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify, contents


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("eval", "hf_sparsify.evaluation.tasks.generative.kl_divergence"),
        ("eval", "json.dumps"),
        ("calibrate", "hf_sparsify.calibration.histogram._bucket"),
        ("calibrate", "hf_sparsify.patcher.recipe.save_thresholds"),
    ],
)
def test_ctrl_c_leaves_nothing_half_written(
    command: str, where: str, sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    before = contents(recipe.parent)
    with monkeypatch.context() as patching:
        patching.setattr(where, interrupted)
        done = sparsify(command, "-d", "q.jsonl", "--max-new-tokens" if command == "eval" else "--samples", "2")
    assert (done.code, done.out) == (130, "")
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    assert contents(recipe.parent) == before
    assert not list(recipe.rglob(".writing-*"))


@pytest.mark.slow
def test_a_real_ctrl_c(recipe: Path) -> None:
    tiny_language_models.save_questions(Path("many.jsonl"), 400)
    before = contents(recipe.parent)
    arguments = ["sparsify", "eval", "-d", "many.jsonl", "--batch-size", "2"]
    # Tests in a shell's background inherit that Ctrl-C is ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; import sys; from hf_sparsify.cli import main; sys.argv = {arguments!r}; main()"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading")
    assert process.stderr.readline().startswith("evaluating: 40 of 400")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert contents(recipe.parent) == before


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
