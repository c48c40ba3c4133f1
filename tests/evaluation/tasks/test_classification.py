"""Classification heads: logits, labels by name, pairs of texts, and what padding must not change."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_language_models
import torch
from both_arms import both_arms, plan_for, summary
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.items import ItemSet, Labelled, make_item_set
from hf_sparsify.evaluation.tasks.classification import Classification, matched_labels
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.proof import prove

FAMILIES = ("bert-classes", "llama-classes")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in FAMILIES}


@pytest.fixture(scope="module")
def items() -> ItemSet:
    texts = [
        Labelled(record["id"], (record["context"],), index % 2)
        for index, record in enumerate(tiny_language_models.records(9))
    ]
    return make_item_set("films", "", texts, DATASETS["sst2"])


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    loaded = models[name]
    found = both_arms(loaded, items, TopK(keep=1.0), batch_size=4)
    assert isinstance(found.task, Classification)
    assert loaded.base.task == "text-classification"
    right = 0
    for record in found.records:
        inputs = loaded.tokenizer(record.item.texts[0], return_tensors="pt")
        with torch.no_grad():
            logits = loaded.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
        assert record.dense["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
        assert record.dense["answer"] == ("negative", "positive")[int(logits.argmax())]
        right += int(logits.argmax()) == record.item.label
        assert record.distance["kl"] == pytest.approx(0, abs=1e-6)
    assert summary(found)["scores"]["dense"]["accuracy"] == pytest.approx(100 * right / 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_does_not_matter(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    one, many = (both_arms(models[name], items, TopK(k=3), batch_size=size) for size in (1, 5))
    for a, b in zip(one.records, many.records, strict=True):
        assert a.patched["logits"] == pytest.approx(b.patched["logits"], abs=1e-5)
        assert a.patched["answer"] == b.patched["answer"]
    assert any(record.distance["kl"] > 1e-6 for record in one.records)
    assert one.journal.meter.summary()["total"] == many.journal.meter.summary()["total"]


@pytest.mark.parametrize("name", FAMILIES)
def test_proof_of_patch(name: str, models: dict[str, LoadedModel]) -> None:
    checks = prove(models[name].model, plan_for(models[name], TopK(k=4)), {}, models[name].base.task)
    assert all(check.passed for check in checks)
    assert "padding and batching do not matter" in [check.name for check in checks]


def test_pairs_of_texts(models: dict[str, LoadedModel]) -> None:
    pairs = [Labelled(f"p{i}", ("Ann is in the attic", f"Where is {name}"), 0) for i, name in enumerate(("Ann", "Ben"))]
    found = both_arms(models["bert-classes"], make_item_set("pairs", "", pairs, DATASETS["rte"]), TopK(k=3))
    assert found.first_input == "<s> Ann is in the attic </s> Where is Ann </s>"
    assert [record.tokens for record in found.records] == [11, 11]
    (sample,) = found.task.calibration_inputs(pairs[0])
    assert sample["token_type_ids"][0].tolist() == [0] * 7 + [1] * 4


def config(*names: str) -> SimpleNamespace:
    return SimpleNamespace(id2label=dict(enumerate(names)))


def test_labels_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    mnli = DATASETS["mnli"].labels
    assert matched_labels(config("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), mnli) == [2, 1, 0]
    assert matched_labels(config("LABEL_0", "LABEL_1", "LABEL_2"), mnli) == [0, 1, 2]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert matched_labels(config("good", "bad"), ("negative", "positive")) == [0, 1]
    assert "the model calls its labels good, bad and the data set negative, positive" in caplog.text
    with pytest.raises(DataError, match="the model tells 2 labels apart and the data has 3"):
        matched_labels(config("a", "b"), mnli)


def test_chance_is_the_commonest_label(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = both_arms(models["bert-classes"], items, TopK(k=3)).task
    assert task.chance(items.items) == 5 / 9


def test_a_saved_classifier_is_loaded_as_one(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_language_models.save("bert-classes", tmp_path / "model")))
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
