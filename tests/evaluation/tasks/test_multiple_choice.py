"""Multiple choice by log-likelihood, against sums worked out one choice at a time."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_language_models
import torch
from both_arms import both_arms, summary
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.datasets.labels import with_labels
from hf_sparsify.evaluation.formats import items_from_records
from hf_sparsify.evaluation.items import ItemSet, Labelled, make_item_set
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.evaluation.tasks.multiple_choice import MultipleChoice, kl_of
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK

PLACES = tiny_language_models.PLACES


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in ("llama", "chat", "gpt2", "t5", "bert"):
        family = "llama" if name == "chat" else name
        made[name] = load_model(str(tiny_language_models.save(family, folder / name, chat=name == "chat")))
    return made


@pytest.fixture(scope="module")
def items() -> ItemSet:
    """Choices of one to three words."""
    records = []
    for index, record in enumerate(tiny_language_models.records(7)):
        texts = [PLACES[index], f"the {PLACES[index + 1]}", "in the hall", "not"]
        records.append(
            (
                f"line {index}",
                {
                    "id": record["id"],
                    "question": f"{record['context']} {record['question']}",
                    "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
                    "answerKey": "ABCD"[index % 4],
                },
            )
        )
    return items_from_records(records, "places", "", DATASETS["arc_easy"])


def brute_force(loaded: LoadedModel, task: MultipleChoice, item: Any, choice: str) -> float:
    """The sum of log p of a choice's tokens, from one pass without batch or cache."""
    prompt = torch.tensor([task.encoder.token_ids(item)])
    answer = torch.tensor([task.encoder.continuation_ids(item, choice)])
    with torch.no_grad():
        if loaded.model.config.is_encoder_decoder:
            start = torch.full((1, 1), loaded.model.config.decoder_start_token_id)
            decoder = torch.cat([start, answer[:, :-1]], 1)
            logits = loaded.model(input_ids=prompt, decoder_input_ids=decoder).logits
        else:
            logits = loaded.model(torch.cat([prompt, answer], 1)).logits[:, prompt.shape[1] - 1 : -1]
    log_probs = logits.double().log_softmax(-1)
    return float(log_probs.gather(-1, answer.unsqueeze(-1)).sum())


@pytest.mark.parametrize("name", ["llama", "chat", "gpt2", "t5"])
def test_log_likelihoods_are_those_of_a_brute_force(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    found = both_arms(models[name], items, TopK(keep=1.0), batch_size=3)
    assert isinstance(found.task, MultipleChoice)
    assert found.task.primary == "accuracy_norm"
    results = summary(found)
    right = {"accuracy": 0, "accuracy_norm": 0}
    for record in found.records:
        expected = [brute_force(models[name], found.task, record.item, choice) for choice in record.item.choices]
        assert record.dense["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        assert record.patched["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        per_character = [value / len(choice) for value, choice in zip(expected, record.item.choices, strict=True)]
        right["accuracy"] += expected.index(max(expected)) == record.item.label
        right["accuracy_norm"] += per_character.index(max(per_character)) == record.item.label
        assert record.dense["answer"] == record.item.choices[per_character.index(max(per_character))]
        first, second = sorted(per_character, reverse=True)[:2]
        assert record.dense["margin"] == pytest.approx(first - second, abs=1e-4)
    assert results["scores"]["dense"] == {key: pytest.approx(100 * count / 7) for key, count in right.items()}
    assert results["distance"]["kl"]["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_neither_batches_nor_padding_change_an_answer_or_a_count(
    name: str, models: dict[str, LoadedModel], items: ItemSet
) -> None:
    one = both_arms(models[name], items, TopK(k=3), batch_size=1)
    many = both_arms(models[name], items, TopK(k=3), batch_size=5)
    for a, b in zip(one.records, many.records, strict=True):
        assert a.patched["log_likelihoods"] == pytest.approx(b.patched["log_likelihoods"], abs=1e-4)
        assert a.distance["kl"] == pytest.approx(b.distance["kl"], abs=1e-4)
    assert one.journal.meter.summary()["total"] == many.journal.meter.summary()["total"]
    assert any(record.distance["kl"] > 1e-3 for record in one.records), "k = 3 is seen"


def test_labels_are_words_for_a_model_that_writes(models: dict[str, LoadedModel]) -> None:
    dataset = with_labels(["attic", "barn"])
    texts = [Labelled(f"t{i}", (f"Ann is in the {word}",), i % 2) for i, word in enumerate(("attic", "barn", "den"))]
    found = both_arms(models["llama"], make_item_set("rooms", "", texts, dataset), TopK(k=2))
    results = summary(found)
    assert results["task"] == "multiple-choice"
    assert results["primary"] == "accuracy"
    assert {record.dense["answer"] for record in found.records} <= {"attic", "barn"}
    assert found.task.chance(texts) == 2 / 3, "the commonest label"
    assert found.task.gold(texts[1]) == ["barn"]


def test_calibration_reads_the_right_choice(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = task_for(models["llama"], items)
    (sample,) = task.calibration_inputs(items.items[1])
    assert models["llama"].tokenizer.decode(sample["input_ids"][0]).endswith(f"the {PLACES[2]}")


def test_what_does_not_fit_is_left_out(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = task_for(models["gpt2"], items)
    room = max(len(task.encoder.token_ids(item)) for item in items.items)
    models["gpt2"].model.config.max_position_embeddings, before = room + 1, 96
    try:
        found = both_arms(models["gpt2"], items, TopK(k=2))
    finally:
        models["gpt2"].model.config.max_position_embeddings = before
    assert 0 < found.left_out.total() < len(items)


def test_an_encoder_cannot_choose(models: dict[str, LoadedModel], items: ItemSet) -> None:
    with pytest.raises(UsageError, match="choices need a model for causal-lm or seq2seq-lm"):
        task_for(models["bert"], items, TaskOptions())


def test_kl_over_choices() -> None:
    assert kl_of([0.0, 0.0], [0.0, 0.0]) == 0
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    expected = float((p * (p / q).log()).sum())
    assert kl_of((p.log() + 3).tolist(), (q.log() - 1).tolist()) == pytest.approx(expected, abs=1e-6)
