"""Models that mark the answer: both arms, batches of windows, what fits, and inputs to calibrate on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_language_models
import torch
from both_arms import answers, both_arms, distances, summary
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.items import ItemSet, Question
from hf_sparsify.evaluation.spans import answer_span
from hf_sparsify.evaluation.tasks import task_for
from hf_sparsify.evaluation.tasks.extractive import Extractive
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK

FAMILIES = ("bert-qa", "roberta-qa", "distilbert-qa", "bart-qa")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in FAMILIES}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> ItemSet:
    """Seven, the third on a passage of three windows."""
    file = tiny_language_models.save_questions(tmp_path_factory.mktemp("data") / "q.jsonl", 7)
    asked = list(read_items(file).items)
    asked[2] = replace(asked[2], context=" ".join(question.context for question in asked[:6]))
    return make_question_set("q.jsonl", "", asked)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_the_dense_limit_both_arms_are_equal(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    results = summary(both_arms(models[name], questions, TopK(keep=1.0)))
    assert results["same_answer_share"] == 1
    assert results["distance"]["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert set(results["scores"]["difference"].values()) == {0}
    assert results["kept"]["total"]["kept_share"] == 1
    assert results["distance"]["kl"]["unit"] == "nats per question"
    assert (results["task"], results["max_new_tokens"]) == ("extractive", None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_k_is_seen(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    found = both_arms(models[name], questions, TopK(k=2))
    results = summary(found)
    assert results["distance"]["kl"]["value"] == pytest.approx(sum(distances(found)) / 7)
    assert results["distance"]["kl"]["value"] > 1e-3
    assert results["kept"]["total"]["kept_per_k"] == 1
    assert results["same_answer_share"] < 1
    assert all(seconds > 0 for seconds in found.journal.seconds.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_does_not_matter(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    alone, together = (both_arms(models[name], questions, TopK(k=4), batch_size=size) for size in (1, 5))
    assert [record.item for record in together.records] == list(questions.items)
    assert answers(alone) == answers(together)
    assert distances(alone) == pytest.approx(distances(together), abs=1e-4)
    assert alone.journal.meter.total().kept == together.journal.meter.total().kept
    assert alone.journal.meter.total().visible == together.journal.meter.total().visible, "padding is not counted"


def test_no_batch_is_larger_than_asked(
    models: dict[str, LoadedModel], questions: ItemSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = type(models["bert-qa"].model).forward

    def seen(
        self: Any, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **rest: Any
    ) -> Any:
        sizes.append(len(input_ids))
        return forward(self, input_ids, attention_mask, token_type_ids, **rest)

    monkeypatch.setattr(type(models["bert-qa"].model), "forward", seen)
    both_arms(models["bert-qa"], questions, TopK(k=4), batch_size=2)
    windows = 7 + 2
    assert max(sizes) == 2
    assert sum(sizes) == 2 * windows


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_the_model_alone(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    loaded = models[name]
    found = both_arms(loaded, questions, TopK(k=2), batch_size=4)
    for record in found.records:
        asked = record.item
        encoded = loaded.tokenizer(
            asked.question,
            asked.context,
            truncation="only_second",
            max_length=96,
            stride=32,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        best = (-1e9, "")
        for index, ids in enumerate(encoded["input_ids"]):
            inputs = {"input_ids": torch.tensor([ids])}
            if "token_type_ids" in encoded:
                inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][index]])
            with torch.no_grad():
                output = loaded.model(**inputs)
            start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
            inside = [place for place, part in enumerate(encoded.sequence_ids(index)) if part == 1]
            offsets = encoded["offset_mapping"][index]
            for a in inside:
                for b in inside:
                    if a <= b < a + 30 and start[a] + end[b] > best[0] + 1e-4:
                        best = (start[a] + end[b], asked.context[offsets[a][0] : offsets[b][1]])
        assert record.dense["answer"] == best[1]
        assert record.dense["answer"] in asked.context
    assert found.records[2].tokens > 96, "of all windows"


def test_what_does_not_fit_is_left_out(models: dict[str, LoadedModel], questions: ItemSet) -> None:
    long = replace(questions.items[0], id="long", question="Where is Ann ?" * 20)
    mixed = replace(questions, items=(long, *questions.items[1:]))
    found = both_arms(models["bert-qa"], mixed, TopK(k=4))
    assert (found.left_out.total(), len(found.records)) == (1, 6)
    assert found.first_input.startswith(f"<s> {questions.items[1].question}"), "of a question that fits"
    assert task_for(models["bert-qa"], mixed).calibration_inputs(long) == []


def test_no_answer_is_for_version_2(models: dict[str, LoadedModel], questions: ItemSet) -> None:
    unanswered = Question("u", questions.items[0].context, "Where is Hal ?", ())
    mixed = make_question_set("v2", "", (*questions.items, unanswered))
    assert mixed.dataset.name == "squad_v2"
    loaded = models["bert-qa"]
    task = task_for(loaded, mixed)
    assert isinstance(task, Extractive)
    found = both_arms(loaded, mixed, TopK(k=400))
    for record in found.records:
        windows = task.encoder.windows(record.item)
        with torch.no_grad():
            logits = task._logits(windows)
        text, margin = answer_span(record.item.context, windows, logits, version_2=True)
        assert record.dense["answer"] == text
        assert record.dense["margin"] == pytest.approx(margin, abs=1e-4)
    # A [CLS] that always wins, and one that never does.
    for bias, empty in ((100.0, 8), (-100.0, 0)):
        changed = both_arms(with_cls_bias(loaded, bias), mixed, TopK(k=400))
        assert sum(dense == "" for dense, _ in answers(changed)) == empty
    version_1 = both_arms(with_cls_bias(loaded, 100.0), questions, TopK(k=400))
    assert all(dense for dense, _ in answers(version_1))


def with_cls_bias(loaded: LoadedModel, bias: float) -> LoadedModel:
    """The model with `bias` added to both scores of the first token."""
    import copy

    model = copy.deepcopy(loaded.model)

    def add(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[:, 0] += bias
        return logits

    model.qa_outputs.register_forward_hook(add)
    return replace(loaded, model=model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_window_is_calibrated_on(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    task = task_for(models[name], questions)
    samples = task.calibration_inputs(questions.items[2])
    assert len(samples) == 3
    assert sum(sample["input_ids"].shape[1] for sample in samples) == len(task.input_ids(questions.items[2]) or [])
    for sample in samples:
        assert all(tensor.shape == (1, sample["input_ids"].shape[1]) for tensor in sample.values())
        assert bool((sample["attention_mask"] == 1).all())
        assert ("token_type_ids" in sample) == (name == "bert-qa")


@pytest.mark.parametrize("name", ["roberta-qa", "distilbert-qa"])
def test_token_types_are_left_to_models_that_have_them(
    name: str, models: dict[str, LoadedModel], questions: ItemSet
) -> None:
    loaded = replace(models[name], tokenizer=tiny_language_models.tokenizer(pairs=True))
    assert "token_type_ids" in loaded.tokenizer("Ann", "Ben")
    assert answers(both_arms(loaded, questions, TopK(k=4))) == answers(both_arms(models[name], questions, TopK(k=4)))
