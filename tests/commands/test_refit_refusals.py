"""`sparsify patch --thresholds`: what is refused, and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_language_models
import torch
from command_line import Done, Sparsify, content, contents, files, refused
from hf_sparsify.calibration.histogram_file import file_hash, load_histograms, save_histograms


def test_the_source_is_not_written_over_before_the_model_is_loaded(
    sparsify: Sparsify, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sparsify.commands.target.load_named", None)
    for target in ((), ("-o", "./sparsified/../sparsified")):
        refused(sparsify("patch", "--thresholds", "sparsified", "--k", "3", *target), 2, "use -o for another directory")


def test_a_model_of_another_shape_or_other_weights_is_refused(sparsify: Sparsify, calibrated: Path, work: Path) -> None:
    command = ("--thresholds", "sparsified", "--k", "3", "-o", "three")
    before = files(work)
    refused(sparsify("patch", "gpt2", *command), 4, "has another shape")
    torch.manual_seed(5)
    tiny_language_models.save("llama", work / "tuned")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "tuned")
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(work / "tuned")
    done = sparsify("patch", "tuned", *command)
    refused(done, 4, f"calibrated on {(work / 'llama').resolve()}, and {work / 'tuned'} has other weights")
    refused(sparsify("patch", *command, "--dtype", "float16"), 4, "or another --dtype")
    shutil.rmtree(work / "tuned")
    assert files(work) == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--attention top-k", 2, "--attention does not go with --thresholds, where all but --k or --keep is"),
        ("--compensation none", 2, "--compensation does not go with --thresholds"),
        ("--v-mean visible", 2, "--v-mean does not go with --thresholds"),
        ("--placement post-softmax", 2, "--placement does not go with --thresholds"),
        ("--min-keep 1", 2, "--min-keep does not go with --thresholds"),
        ("--layers 0", 2, "--layers does not go with --thresholds"),
        ("--skip_layers none", 2, "--skip-layers does not go with --thresholds"),
        ("--ffn none", 2, "--ffn does not go with --thresholds"),
        ("--protect-first 0", 2, "--protect-first does not go with --thresholds"),
        ("--set re:.*=none", 2, "--set does not go with --thresholds"),
        ("--k 2 --keep 0.5", 2, "--k and --keep exclude each other"),
        ("--k 0", 2, "k must be a whole number of at least 1, not 0"),
        ("--keep 2", 2, "keep must be a fraction in (0, 1], not 2.0"),
        ("--split train", 2, "--split goes with --dataset"),
        ("--dataset nowhere.jsonl", 1, "no such file: nowhere.jsonl"),
        ("--dataset q.jsonl --split train", 2, "a file has no splits"),
        ("--k 500", 1, "no row that was calibrated in sparsified is longer than its k: use a smaller --k"),
        ("-o q.jsonl/below", 1, "cannot write the recipe to q.jsonl/below"),
    ],
)
def test_what_is_refused(arguments: str, code: int, sentence: str, sparsify: Sparsify, calibrated: Path) -> None:
    before = contents(calibrated.parent)
    done = sparsify("patch", "--thresholds", "sparsified", "-o", "new", *arguments.split())
    errors = Done(
        done.code, done.out, "\n".join(line for line in done.err.splitlines() if not line.startswith("warning: "))
    )
    refused(errors, code, sentence)
    assert contents(calibrated.parent) == before


def test_a_budget_has_to_go_with_the_rest_of_its_method(sparsify: Sparsify) -> None:
    options = ("--attention", "top-theta", "--min-keep", "3", "--protect-first", "2", "--no-verify")
    assert sparsify("patch", "llama", "--k", "4", *options).code == 0
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    command = ("patch", "--thresholds", "sparsified", "-o", "new")
    refused(sparsify(*command, "--k", "2"), 2, "min_keep = 3 is more than k = 2")
    refused(sparsify(*command, "--k", "1"), 2, "2 protected keys do not fit in k = 1")


@pytest.mark.parametrize("damage", ["unlink", "write", "cut"])
def test_without_its_histograms(damage: str, sparsify: Sparsify, calibrated: Path) -> None:
    path = calibrated / "histograms.safetensors"
    if damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(b"{}" if damage == "write" else path.read_bytes()[:-9])
    refused(sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "new"), 1, "`sparsify calibrate`")
    assert not Path("new").exists()


def test_counts_of_another_number_of_heads_are_refused(sparsify: Sparsify, calibrated: Path) -> None:
    path = calibrated / "histograms.safetensors"
    histograms, notes = load_histograms(path)
    for histogram in histograms.values():
        for part in histogram.parts().values():
            part.update({bucket: counts[:1] for bucket, counts in part.items()})
    save_histograms(histograms, path, notes)
    made = content("sparsified")
    made["calibration"]["histograms_sha256"] = file_hash(path)
    (calibrated / "sparsify.json").write_text(json.dumps(made))
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "--no-verify")
    refused(done, 4, "heads")
    assert not Path("three").exists()


def test_what_holds_no_calibration(sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("patch", "--thresholds", "nowhere", "--k", "3", "-o", "new"), 1, "nowhere holds no recipe")
    refused(sparsify("patch", "--thresholds", "llama", "--k", "3", "-o", "new"), 1, "llama holds no recipe")
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    command = ("patch", "--thresholds", "sparsified", "--k", "3", "-o", "new")
    refused(sparsify(*command), 1, "not calibrated: run `sparsify calibrate`")
