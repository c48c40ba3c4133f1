"""Encoders that find a question's passage: ranks against a brute force, passages, pooling, and both arms."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import tiny_language_models
import torch
from both_arms import answers, both_arms, distances, summary
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.results import prediction_lines
from hf_sparsify.evaluation.run import Evaluation
from hf_sparsify.evaluation.tasks import task_for
from hf_sparsify.evaluation.tasks.retrieval import ranking
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_models.save("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def bert(folder: Path) -> LoadedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> ItemSet:
    """Nine questions on seven passages: the last two share those of the first and third; the second has a title."""
    file = tiny_language_models.save_questions(tmp_path_factory.mktemp("data") / "q.jsonl", 9)
    asked = list(read_items(file).items)
    asked[1] = replace(asked[1], title="Places")
    asked[7] = replace(asked[7], context=asked[0].context)
    asked[8] = replace(asked[8], context=asked[2].context)
    return make_question_set("q.jsonl", "", asked)


def ranks(evaluation: Evaluation) -> list[tuple[int, int]]:
    """Of every question's own passage, by the dense and by the patched model."""
    return [(record.dense["rank"], record.patched["rank"]) for record in evaluation.records]


def vectors(loaded: LoadedModel, texts: list[str]) -> list[list[float]]:
    """Mean-pooled embeddings of length 1, one text at a time."""
    made = []
    for text in texts:
        with torch.no_grad():
            hidden = loaded.model(loaded.tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        mean = hidden.mean(0)
        made.append((mean / mean.norm()).tolist())
    return made


def test_ranks_are_those_of_a_brute_force(bert: LoadedModel, questions: ItemSet) -> None:
    found = both_arms(bert, questions, TopK(k=3), batch_size=4)
    passages = list(dict.fromkeys(question.context for question in questions.items))
    assert len(passages) == 7
    embedded = vectors(bert, passages)
    lines, by_hand = prediction_lines(found), []
    for record, line in zip(found.records, lines, strict=True):
        question = record.item
        [asked] = vectors(bert, [question.question])
        alike = [sum(a * b for a, b in zip(asked, passage, strict=True)) for passage in embedded]
        own = passages.index(question.context)
        rank = 1 + sum(other > alike[own] for other in alike)
        by_hand.append(rank)
        scores = {"accuracy": float(rank == 1), "reciprocal_rank": 1 / rank}
        assert found.task.score(record, "dense") == scores
        assert line["dense"] == {"answer": record.dense["answer"], "rank": rank, **scores}
        assert line["dense"]["answer"].startswith(f"passage {alike.index(max(alike)) + 1}: ")
        assert line["gold"][0].startswith(f"passage {own + 1}: ")
        assert (line["dense"]["answer"] == line["gold"][0]) == (rank == 1)
    assert len(set(by_hand)) > 2
    results = summary(found)
    assert results["scores"]["dense"]["reciprocal_rank"] == pytest.approx(100 * sum(1 / rank for rank in by_hand) / 9)
    assert results["scores"]["dense"]["accuracy"] == pytest.approx(100 * by_hand.count(1) / 9)


def test_labels_say_number_title_and_first_words(bert: LoadedModel, questions: ItemSet) -> None:
    gold = [line["gold"][0] for line in prediction_lines(both_arms(bert, questions, TopK(k=3)))]
    assert gold[0] == "passage 1: Ann is in the attic . Ben is ..."
    assert gold[1] == "passage 2: Places: Ben is in the den . Cleo is ..."
    assert gold[7:] == [gold[0], gold[2]]


def test_in_the_dense_limit_both_arms_are_equal(bert: LoadedModel, questions: ItemSet) -> None:
    results = summary(both_arms(bert, questions, TopK(keep=1.0)))
    assert results["same_answer_share"] == 1
    assert set(results["scores"]["difference"].values()) == {0}
    assert results["kept"]["total"]["kept_share"] == 1
    assert results["distance"] == {"question_cosine": pytest.approx(1), "passage_cosine": pytest.approx(1)}
    assert (results["max_new_tokens"], results["task"]) == (None, "retrieval")


def test_the_patched_arm_ranks_with_its_own_passages(bert: LoadedModel, questions: ItemSet) -> None:
    # Questions have 4 tokens: with k = 4 only passages change.
    found = both_arms(bert, questions, TopK(k=4))
    assert distances(found, "question_cosine") == pytest.approx([1] * 9)
    assert max(distances(found, "passage_cosine")) < 0.9999
    found = both_arms(bert, questions, TopK(k=1))
    assert max(distances(found, "question_cosine")) < 0.9999
    assert any(dense != patched for dense, patched in ranks(found))
    assert all(seconds > 0 for seconds in found.journal.seconds.values())


def test_batch_size_does_not_matter(bert: LoadedModel, questions: ItemSet) -> None:
    alone, together = (both_arms(bert, questions, TopK(k=3), batch_size=size) for size in (1, 5))
    assert [record.item for record in together.records] == list(questions.items)
    assert ranks(alone) == ranks(together)
    assert answers(alone) == answers(together)
    for a, b in zip(alone.records, together.records, strict=True):
        assert a.distance == pytest.approx(b.distance, abs=1e-5)
    # With a passage for every question no batch shares one.
    apart = replace(questions, items=questions.items[:7])
    alone, together = (both_arms(bert, apart, TopK(k=3), batch_size=size) for size in (1, 5))
    assert alone.journal.meter.total().kept == together.journal.meter.total().kept
    assert alone.journal.meter.total().visible == together.journal.meter.total().visible, "padding is not counted"


@pytest.mark.parametrize(("batch_size", "read"), [(1, 9), (2, 7), (7, 8), (100, 7)])
def test_a_batch_reads_every_passage_once(batch_size: int, read: int, bert: LoadedModel, questions: ItemSet) -> None:
    found = both_arms(bert, questions, TopK(k=3), batch_size=batch_size)
    ordered = found.task.order(questions.items)
    length = {text: len(text.split()) for question in ordered for text in (question.context, question.question)}
    contexts = [question.context for question in ordered]
    assert [length[context] for context in contexts] == sorted((length[c] for c in contexts), reverse=True)
    assert len(list(groupby(contexts))) == len(set(contexts)) == 7, "questions on one passage stand together"
    batches = [ordered[start : start + batch_size] for start in range(0, 9, batch_size)]
    expected = [text for batch in batches for text in {question.context for question in batch}]
    assert len(expected) == read
    expected += [question.question for question in ordered]
    rows = found.journal.meter.total().rows
    assert rows == sum(length[text] for text in expected) * 2 * 4, "two layers of four heads"


def test_one_passage_is_nothing_to_rank(bert: LoadedModel, questions: ItemSet) -> None:
    single = replace(questions, items=(questions.items[0], questions.items[7]))
    with pytest.raises(DataError, match=r"q\.jsonl has a single passage for its 2 questions.*nothing to rank"):
        both_arms(bert, single, TopK(k=3))
    task_for(bert, single).calibration_inputs(single.items[0])


def test_equals_are_ranked_in_their_order() -> None:
    passages = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert ranking(torch.tensor([1.0, 0.0]), passages).tolist() == [1, 3, 0, 2, 4]
    assert ranking(torch.tensor([float("nan"), 0.0]), passages).tolist() == [0, 1, 2, 3, 4], "no rank 1 for everyone"


@pytest.mark.parametrize("mode", ["cls_token", "max_tokens", "lasttoken"])
def test_pooling_follows_the_folder(mode: str, tmp_path: Path, bert: LoadedModel, questions: ItemSet) -> None:
    folder = tiny_language_models.save("bert", tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    loaded = load_model(str(folder))
    pooled, mean = (summary(both_arms(model, questions, TopK(k=3))) for model in (loaded, bert))
    assert pooled["prompt"]["style"] != mean["prompt"]["style"]
    assert pooled["distance"]["passage_cosine"] != mean["distance"]["passage_cosine"]


def test_long_texts_are_cut_to_the_positions(tmp_path: Path, questions: ItemSet) -> None:
    loaded = load_model(str(tiny_language_models.save("bert", tmp_path / "bert", max_position_embeddings=20)))
    task = task_for(loaded, questions)
    assert len(task.input_ids(questions.items[0]) or []) == 20 + 4
    found = both_arms(loaded, questions, TopK(k=3))
    assert (found.left_out.total(), len(found.records)) == (0, 9)
    long = load_model(str(tiny_language_models.save("bert", tmp_path / "long")))
    long.tokenizer.model_max_length = 12
    assert len(task_for(long, questions).input_ids(questions.items[0]) or []) == 12 + 4


def test_passage_and_question_are_calibrated_on(bert: LoadedModel, questions: ItemSet) -> None:
    task = task_for(bert, questions)
    passage, question = task.calibration_inputs(questions.items[0])
    assert bert.tokenizer.decode(passage["input_ids"][0]) == questions.items[0].context
    assert bert.tokenizer.decode(question["input_ids"][0]) == questions.items[0].question
    assert all(bool((sample["attention_mask"] == 1).all()) for sample in (passage, question))
    assert task.first_input(questions.items[0]).split("\n") == [
        questions.items[0].question,
        questions.items[0].context,
    ]


def test_a_decoder_can_be_an_encoder(tmp_path: Path, questions: ItemSet) -> None:
    """Causal embedding models read from the left, so that padding on the right is out of sight."""
    folder = tiny_language_models.save("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    loaded = load_model(str(folder))
    alone, together = (both_arms(loaded, questions, TopK(k=3), batch_size=size) for size in (1, 5))
    assert ranks(alone) == ranks(together)
    assert together.task.style.endswith("last token pooling")
