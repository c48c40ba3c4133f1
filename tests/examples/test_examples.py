"""Every script in examples/ runs as its docstring says and prints what a reader is to see."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# No scripts: what others import.
SHARED = (
    "demo_training.py",
    "fidelity_lab.py",
    "listops_data.py",
    "listops_rules.py",
    "listops_training.py",
    "staged_lab.py",
    "synthetic_speech.py",
)
TRAINING = ("train_demo_bert.py", "train_demo_llama.py", "train_demo_t5.py")
FEW = ["--steps", "2", "--batch", "2", "--layers", "1", "--validation", "1", "--output", "speech"]
DEMO = ["demo-llama", "--calibration", "demo", "--distractors", "0", "--samples", "2", "--k", "4"]
ON_DEMO = [*DEMO, "--evaluation", "demo", "--calibration-distractors", "0"]
STAGED = ["demo-llama", "--calibration", "demo", "--evaluation", "demo", "--tokens", "256", "--queries", "4"]

# Arguments that make it short, and what it must print.
SCRIPTS: dict[str, tuple[list[str], str]] = {
    "calibrate_in_python.py": ([], r"top-theta, thresholds for 4 heads(.*\n)+kept on new texts: \d\.\d\d x k"),
    "cluster_quality.py": (["--texts", "1", "--tokens", "64", "--clusters", "4"], r"\| 4 \| row space \| 0\.\d+"),
    "clustered_paper.py": (
        ["--rows", str(Path(__file__).with_name("rows.json")), "--limit", "4", "--clusters", "8"],
        r"^\| stories, f1, 4 items \| hamming \| \d(.*\n)\|  \| rows \| \d",
    ),
    "finetune_classifier.py": (
        ["--output", "classifier", "--steps", "1", "--batch-size", "2", "--items", "4"],
        r"^step 1: loss \d.*\nwrote classifier with 4 stories",
    ),
    "compile.py": ([], r"k = 2 +norm .* uncompiled 0\.0e\+00\ndense +norm"),
    "demo_curve.py": (["--models", "demo-bert", "--kept", "4", "--limit", "8"], r"\| demo-bert, all \| +\d"),
    "demo_table.py": (["--models", "demo-llama", "--limit", "4"], r"clustered \| - .*\n.*activations 12\.5 %"),
    "feed_forward.py": ([], r"256 of 256 +100\.0%(.*\n)+ +1 of 256 +0\.4%"),
    "finetune.py": (
        ["--k", "2", "--seeds", "0", "--steps", "2", "--more", "1"],
        r"k-2-more: trained for \d+ s\n(.*\n)+\| k = 2 \|( \d+\.\d ± 0\.0 \|){5}",
    ),
    "listops.py": (
        ["--length", "8-16", "--batch-size", "4", "--steps", "2", "--seeds", "2", "--methods", "clustered"],
        r"bag of tokens \| \d(.*\n)+\| clustered \| \d+\.\d \+- \d+\.\d \| 2 \| 2 \| \d+ \| \d\.\d{3} \|$",
    ),
    "key_bounds.py": (
        [str(EXAMPLES.parent / "evaluation/demo/demo-llama"), "--text", __file__, "--tokens", "64"],
        r"\| 16 \| \d+\.\d % \| 16 rows \|( \d+\.\d % \|){3}$",
    ),
    "long_encoder.py": (["long-encoder", "--positions", "64", "--layers", "1"], r"^[\d,]+ parameters in long-encoder"),
    "long_t5.py": (
        ["--tokens", "64", "--layers", "1"],
        r"\| demo-t5 \| 64 \| \d.*\n(.*\n)*demo-t5, k = all of 64 .* \d\.\de-0[678] ",
    ),
    "patch_in_python.py": ([], r"a plan +\w+\n  encoder\.block\.1\.layer\.0\.SelfAttention kept 25%"),
    "peft_adapter.py": ([], r"merged, sparse: +loss \d|^skipped"),
    "questions_needed.py": ([], r"^\| answers flipped \| 0\.5 points .*\n\|---.*\n\| 0 % (\| [\d,]+ ){4}\|\n"),
    "speed.py": (["--rounds", "1", "--lengths", "256", "--tokens", "1"], r"\| 256 \| \d(.*\n)+.*2048 / 8192 \| 1/8"),
    "staged_kernel.py": ([*STAGED, "--k", "8"], r"\| pre-softmax, none \| 8 bits \| \d+ \| \d.* \| \d\.\de-0[678] \|"),
    "staged_scores.py": ([*STAGED, "--k", "8"], r"^\| 8 bits, then all 32 \| (.*\n)+\| score axes, 8\+8\+16 \| \d"),
    "train_ctc.py": (FEW, r"step 1  ctc \d+\.\d+  frame \d"),
    "unifiedqa.py": (
        ["demo-t5", "--limit", "2", "--k", "256", "64", "1"],
        r"^\| EM \| dense \| k = 64 \| k = 1 \|(.*\n)+\| worst change (.*\n)+\| demo \| 2 \| .* NOT TESTED \|",
    ),
    "tune_predictors.py": (["demo-llama", "--data", "demo", "--samples", "1"], r"\| 0\.05 \| -?\d\.\d\d \| "),
    "top_theta_error.py": (ON_DEMO, r"\| mean \| 0\.\d+ \(1\.00\) \| 0\.\d+ \("),
    "top_theta_shift.py": (
        [*DEMO, "--texts", "demo"],
        r"\| placement \| demo, up to \d+ tokens \|(.*\n)+\| pre-softmax \| \d\.\d\d \(",
    ),
    "top_theta_table.py": (
        [*ON_DEMO, "--questions", "2", "--compensations", "sdc+vmc", "--last", "8", "--workers", "1"],
        r"\| 4 \| sdc\+vmc \| top-k \| (.*\n)+\| 4 \| sdc\+vmc \| pre-softmax \| \d",
    ),
    "training_memory.py": (["--lengths", "256", "--ways", "top-k"], r"^\| 256 \| \d+ MiB, \d+\.\d s \|"),
    **{name: (["--minutes", "0.02"], r"^dev 0\.\d+") for name in TRAINING},
}


def test_no_script_is_forgotten() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*SCRIPTS, *SHARED])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str, tmp_path: Path) -> None:
    options, expected = SCRIPTS[name]
    if name == "staged_kernel.py" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    if name in TRAINING:
        options = [*options, "--output", str(tmp_path / "model")]
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.MULTILINE), done.stdout
    if name in TRAINING:
        assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstrings_say_how_to_run_it(name: str) -> None:
    docstring = (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[1]
    assert f"python examples/{name}" in docstring
