"""all-MiniLM-L6-v2 (6 layers, 12 heads, 384 dimensions) finds the passages of real SQuAD questions."""

from __future__ import annotations

import json
import os
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
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
MODEL = Path(os.environ.get("SPARSIFY_REAL_MODELS", ROOT / "models")) / "all-MiniLM-L6-v2"
SQUAD = Path(os.environ.get("SPARSIFY_SQUAD_DIR", "no SPARSIFY_SQUAD_DIR"))

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is missing: run `make real-models`"),
]
needs_squad = pytest.mark.skipif(
    not (SQUAD / "squad-eval.json").exists(),
    reason="no SQuAD files: set SPARSIFY_SQUAD_DIR to a folder with squad-eval.json and squad-calibration.json",
)


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
        ["eval", "--dataset", str(SQUAD / "squad-eval.json"), "--limit", "48"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("sparsified/eval/*/results.json")
    found = json.loads(file.read_text())
    assert (found["task"], found["dataset"]["questions"]) == ("retrieval", 48)
    assert found["scores"]["dense"]["accuracy"] > 90
    assert found["scores"]["dense"]["reciprocal_rank"] > 94
    assert found["mean_cosine"] == pytest.approx(1, abs=1e-3), "questions are shorter than k"
    assert 0.9 < found["mean_passage_cosine"] < 0.9999
    assert found["kept"]["total"]["kept_share"] < 0.6
