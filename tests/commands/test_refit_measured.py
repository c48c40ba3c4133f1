"""`sparsify patch --thresholds`: how much the new thresholds keep, and on which items that is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_language_models
from command_line import Sparsify, content, contents, files, warnings_of

WROTE = ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]


def test_from_another_directory(
    sparsify: Sparsify, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = sparsify("patch", "--thresholds", str(calibrated), "--k", "3")
    assert done.code == 0, done.err
    assert files(tmp_path / "elsewhere") == [f"sparsified/{name}" for name in WROTE]
    assert "kept / k was not measured: q.jsonl is neither a file here nor " in done.out
    assert "; name other items with --dataset" in done.out
    done = sparsify("patch", "--thresholds", str(calibrated), "--k", "3", "-d", f"{calibrated.parent}/q.jsonl")
    assert "q.jsonl: mean " in done.out


def test_data_that_has_changed_is_not_measured_on(sparsify: Sparsify, calibrated: Path) -> None:
    tiny_language_models.save_questions(Path("q.jsonl"), 5)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert "kept / k was not measured: q.jsonl has other items than in calibration; name other items" in done.out


@pytest.mark.parametrize("name", ["somebody/data", "data", "/dev/zero", "squad=/dev/zero", "."])
def test_what_only_the_recipe_names_is_not_opened(
    name: str, sparsify: Sparsify, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = content("sparsified")
    made["calibration"]["dataset"] = name
    (calibrated / "sparsify.json").write_text(json.dumps(made))
    for function in ("_load_hub", "read_items"):
        monkeypatch.setattr(f"hf_sparsify.evaluation.sources.{function}", None)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert done.code == 0, done.err
    assert f"kept / k was not measured: {name} is neither a file here nor " in done.out


def test_a_dry_run_writes_nothing(sparsify: Sparsify, calibrated: Path, work: Path) -> None:
    before = contents(work)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert done.code == 0
    assert "kept / k on " in done.out
    assert "dry run: nothing was written" in done.out
    assert contents(work) == before


def test_dense_activations_are_those_of_any_k(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--activations", "dense").code == 0
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three")
    assert done.code == 0, done.err
    assert warnings_of(done) == []
    assert "kept / k" not in done.out
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "-d", "q.jsonl")
    assert "kept / k on 6 items of q.jsonl" in done.out


def test_distractors_are_those_of_calibration(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "3", "--distractors", "1").code == 0
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "--no-verify")
    assert "kept / k on 3 items of q.jsonl: mean " in done.out
    assert content("three")["calibration"]["distractors"] == 1
