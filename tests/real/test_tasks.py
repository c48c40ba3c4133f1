"""Multiple choice, labels as words, and plain text on SmolLM2; a classification head on MiniLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from both_arms import both_arms, summary
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.formats import items_from_records, read_items
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.results import NEAR_TIE
from hf_sparsify.evaluation.verdict.gate import FAIL, INCONCLUSIVE, Gate
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK
from real_models import ROOT, SQUAD, marks, model_folder, needs_squad
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SMOLLM2, MINILM = model_folder("SmolLM2-135M-Instruct"), model_folder("all-MiniLM-L6-v2")
pytestmark = [*marks(SMOLLM2), *marks(MINILM)]

CHOICES = [
    ("Which animal barks?", ["a cat", "a dog", "a fish", "a cow"], "B"),
    ("What is the capital of France?", ["Berlin", "Madrid", "Paris", "Rome"], "C"),
    ("What do plants need to make their food?", ["sunlight", "plastic", "iron", "glass"], "A"),
    ("What falls from clouds?", ["sand", "stones", "milk", "rain"], "D"),
    ("Which of these do people use to cut paper?", ["scissors", "a spoon", "a pillow", "soap"], "A"),
    ("How many legs does a spider have?", ["two", "three", "eight", "one hundred"], "C"),
]
GOOD = ["a wonderful film", "I loved every minute", "great actors and a moving story", "the best film of the year"]
BAD = ["a terrible film", "I hated every minute", "boring actors and a stupid story", "the worst film of the year"]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model(str(SMOLLM2))


def films() -> ItemSet:
    texts = [(text, label) for label, group in ((1, GOOD), (0, BAD)) for text in group]
    records = [(f"line {i}", {"idx": i, "sentence": text, "label": label}) for i, (text, label) in enumerate(texts)]
    return items_from_records(records, "films", "", DATASETS["sst2"])


def test_multiple_choice(smollm2: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [
        {"id": str(i), "question": q, "choices": {"text": texts, "label": ["A", "B", "C", "D"]}, "answerKey": key}
        for i, (q, texts, key) in enumerate(CHOICES)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = both_arms(smollm2, read_items(file), TopK(k=64), batch_size=4)
    results = summary(found)
    assert (results["task"], results["primary"]) == ("multiple-choice", "accuracy_norm")
    assert results["scores"]["dense"]["accuracy"] >= 50, "chance is 25"
    assert found.first_input.startswith("<|im_start|>")
    assert results["distance"]["kl"]["value"] < 0.1


def test_labels_as_words(smollm2: LoadedModel) -> None:
    found = both_arms(smollm2, films(), TopK(keep=0.5), batch_size=4)
    assert summary(found)["kept"]["total"]["kept_share"] < 0.6
    for arm in ("dense", "patched"):
        pairs = [(record.item.label, record.answer(arm)["log_likelihoods"]) for record in found.records]
        lean = [sum(ll[1] - ll[0] for label, ll in pairs if label == wanted) / 4 for wanted in (0, 1)]
        assert lean[1] > lean[0] + 0.1, "positive is likelier where it is right"


def test_plain_text(smollm2: LoadedModel) -> None:
    found = both_arms(smollm2, read_items(ROOT / "README.md").sample(3, seed=0), TopK(k=64))
    results = summary(found, Gate(max_drop=1))
    assert results["primary"] == "top1_agreement"
    assert 80 < results["scores"]["patched"]["top1_agreement"] < 100
    assert 0.001 < results["distance"]["kl"]["value"] < 0.2
    assert 1 < results["distance"]["perplexity"]["ratio"] < 1.2
    assert results["intervals"]["top1_agreement"]["high"] < 0
    assert results["verdict"]["decision"] in (FAIL, INCONCLUSIVE)


@needs_squad
@pytest.mark.slow
def test_answers_that_the_batch_size_changes_are_near_ties(smollm2: LoadedModel) -> None:
    items = read_items(SQUAD / "squad-eval.json").sample(3, seed=2)
    one, many = (both_arms(smollm2, items, TopK(k=64), batch_size=size, max_new_tokens=6) for size in (1, 3))
    for a, b in zip(one.records, many.records, strict=True):
        for arm in ("dense", "patched"):
            if a.answer(arm)["answer_tokens"] != b.answer(arm)["answer_tokens"]:
                assert min(a.answer(arm)["margin"], b.answer(arm)["margin"]) < NEAR_TIE
        assert a.dense["margin"] == pytest.approx(b.dense["margin"], abs=1e-3)


def test_a_classification_head(tmp_path: Path) -> None:
    """MiniLM with a linear head that is fitted here, on words of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(
        MINILM, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1}
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    good, bad = ("good", "excellent", "I like it", "lovely"), ("bad", "awful", "I dislike it", "ugly")
    inputs = tokenizer([*good, *bad], padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.bert(**inputs).pooler_output
    labels = torch.tensor([1] * 4 + [0] * 4)
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.classifier(pooled), labels).backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    loaded = load_model(str(tmp_path / "model"))
    found = both_arms(loaded, films(), TopK(k=4))
    results = summary(found)
    assert results["task"] == "classification"
    assert results["scores"]["dense"]["accuracy"] >= 75, "chance is 50"
    assert results["distance"]["kl"]["value"] > 0
