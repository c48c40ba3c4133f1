"""all-MiniLM-L6-v2 (6 layers, 12 heads, 384 dimensions) finds the passages of real SQuAD questions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_sparsify.cli import app
from hf_sparsify.evaluation.pooling import embed, pooling_mode
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import make_plan
from hf_sparsify.patcher.proof import prove
from real_models import ROOT, SQUAD, marks, model_folder, needs_squad
from typer.testing import CliRunner

MODEL = model_folder("all-MiniLM-L6-v2")
pytestmark = marks(MODEL)


@pytest.fixture(scope="module")
def minilm() -> LoadedModel:
    return load_model(str(MODEL))


def test_proof_of_patch(minilm: LoadedModel) -> None:
    plan = make_plan(attention_modules(minilm.model), TopK(k=64))
    assert len(plan) == 6
    assert all(check.passed for check in prove(minilm.model, plan, {}, minilm.base.task))


def test_meaning_is_near(minilm: LoadedModel) -> None:
    texts = ["How tall is the tower?", "The tower is 300 metres high.", "Cats sleep most of the day."]
    inputs = minilm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = minilm.model(**inputs).last_hidden_state
    vectors = embed(hidden, inputs["attention_mask"], pooling_mode(minilm))
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.2


@needs_squad
@pytest.mark.slow
def test_calibrate_and_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["patch", str(MODEL), "--no-verify"],
        ["calibrate", "--dataset", str(SQUAD / "squad-calibration.json"), "--samples", "16"],
        ["eval", "--dataset", str(SQUAD / "squad-eval.json"), "--limit", "48", "--max-drop", "100"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("sparsified/eval/*/results.json")
    found = json.loads(file.read_text())
    assert (found["task"], found["dataset"]["items"]) == ("retrieval", 48)
    assert found["scores"]["dense"]["accuracy"] > 90
    assert found["scores"]["dense"]["reciprocal_rank"] > 94
    assert found["distance"]["question_cosine"] == pytest.approx(1, abs=1e-3), "questions are shorter than k"
    assert 0.9 < found["distance"]["passage_cosine"] < 0.9999
    assert found["kept"]["total"]["kept_share"] < 0.6


@needs_squad
@pytest.mark.slow
def test_rows_of_clusters_are_closer_than_clusters_of_queries_were() -> None:
    """The bounds are what k-means on the queries themselves gave on a text of 512 tokens, in the mean."""
    script = ROOT / "examples" / "cluster_quality.py"
    options = ["--model", str(MODEL), "--dataset", str(SQUAD / "squad-eval.json"), "--texts", "1"]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"\| (\d+) \| row space \| [\d.]+ \| ([\d.]+) \|", done.stdout)
    improved = {int(clusters): float(distance) for clusters, distance in rows}
    assert improved[25] < 0.374
    assert improved[100] < 0.223
