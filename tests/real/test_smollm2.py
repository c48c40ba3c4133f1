"""SmolLM2-135M-Instruct (30 layers, 9 query heads on 3 KV heads) and real SQuAD questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_sparsify.calibration.check import measure_kept
from hf_sparsify.calibration.run import calibrate_plan
from hf_sparsify.cli import app
from hf_sparsify.evaluation.generation import generate_greedy
from hf_sparsify.evaluation.inputs import PromptEncoder
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import make_plan
from hf_sparsify.patcher.proof import prove
from real_models import SQUAD, marks, model_folder, needs_squad
from typer.testing import CliRunner

MODEL = model_folder("SmolLM2-135M-Instruct")
pytestmark = marks(MODEL)


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model(str(MODEL))


@pytest.fixture(scope="module")
def prompts(smollm2: LoadedModel) -> list[list[int]]:
    questions = load_items(str(SQUAD / "squad-eval.json")).sample(4, seed=3)
    encoder = PromptEncoder.for_model(smollm2, questions.dataset)
    return [encoder.token_ids(question) for question in questions.items]


def test_proof_of_patch(smollm2: LoadedModel) -> None:
    plan = make_plan(attention_modules(smollm2.model), TopK(k=64))
    assert len(plan) == 30
    checks = prove(smollm2.model, plan, {}, smollm2.base.task)
    assert len(checks) == 6
    assert all(check.passed for check in checks)


def test_rows_within_k_generate_what_the_dense_model_generates(smollm2: LoadedModel) -> None:
    batch = smollm2.tokenizer(["The capital of France is", "Water boils at"], return_tensors="pt", padding=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        dense = generate_greedy(smollm2.model, inputs, 12, smollm2.tokenizer.pad_token_id)
        apply_plan(smollm2.model, make_plan(attention_modules(smollm2.model), TopK(k=10_000)))
        patched = generate_greedy(smollm2.model, inputs, 12, smollm2.tokenizer.pad_token_id)
        remove_patch(smollm2.model)
    assert torch.equal(dense, patched)
    assert "Paris" in smollm2.tokenizer.decode(patched[0])


@needs_squad
def test_thresholds_keep_k_keys_on_other_questions(smollm2: LoadedModel, prompts: list[list[int]]) -> None:
    plan = make_plan(attention_modules(smollm2.model), TopK(k=32))
    samples = [{"input_ids": torch.tensor([prompt])} for prompt in prompts]
    made = calibrate_plan(smollm2.model, plan, samples[:3])
    assert len(made.thresholds) == 30
    assert all(table.heads == 9 for table in made.thresholds.values())
    seen, held_out = (
        measure_kept(smollm2.model, made.plan, made.thresholds, part).summary()["total"]
        for part in (samples[:3], samples[3:])
    )
    assert 0.97 < seen["kept_per_k"] < 1.05
    total = held_out
    assert 0.7 < total["kept_per_k"] < 1.4
    assert total["long_kept_share"] < 0.6
    assert total["rows_saved_by_min_keep"] < 0.05 * total["long_rows"]


@needs_squad
def test_real_squad_files() -> None:
    assert len(load_items(str(SQUAD / "squad-eval.json"))) == 258
    assert len(load_items(str(SQUAD / "squad-calibration.json"))) == 354


@needs_squad
@pytest.mark.slow
def test_patch_calibrate_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["patch", str(MODEL), "--no-verify"],
        ["calibrate", "--dataset", str(SQUAD / "squad-calibration.json"), "--samples", "3"],
        [
            *("eval", "--dataset", str(SQUAD / "squad-eval.json"), "--limit", "2", "--max-new-tokens", "8"),
            *("--max-drop", "100"),
        ],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    (results,) = tmp_path.glob("sparsified/eval/*/results.json")
    found = json.loads(results.read_text())
    assert found["dataset"]["items"] == 2
    assert found["base_model"]["task"] == "causal-lm"
    assert {entry["method"] for entry in found["plan"].values()} == {"top-theta"}
    assert found["kept"]["total"]["kept_share"] < 0.9
    assert found["distance"]["kl"]["value"] > 0
