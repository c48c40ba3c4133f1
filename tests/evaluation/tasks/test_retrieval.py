"""Encoders that find a question's passage: ranks against a brute force, passages, pooling, and both arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import torch
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.formats import read_questions
from hf_sparsify.evaluation.questions import QuestionSet, make_question_set
from hf_sparsify.evaluation.results import summarize
from hf_sparsify.evaluation.run import Evaluation, evaluate
from hf_sparsify.evaluation.tasks import task_for
from hf_sparsify.evaluation.tasks.retrieval import ranking
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.methods import TopK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_models.save("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def bert(folder: Path) -> LoadedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    """Nine questions on seven passages: the last two share those of the first and third; the second has a title."""
    file = tiny_language_models.save_questions(tmp_path_factory.mktemp("data") / "q.jsonl", 9)
    asked = list(read_questions(file))
    asked[1] = replace(asked[1], title="Places")
    asked[7] = replace(asked[7], context=asked[0].context)
    asked[8] = replace(asked[8], context=asked[2].context)
    return make_question_set("q.jsonl", "", asked)


def both_arms(loaded: LoadedModel, questions: QuestionSet, method: Any, **options: Any) -> Evaluation:
    plan = {module.name: method for module in attention_modules(loaded.model)}
    return evaluate(loaded, plan, questions, **options)


def vectors(loaded: LoadedModel, texts: list[str]) -> list[list[float]]:
    """Mean-pooled embeddings of length 1, one text at a time."""
    made = []
    for text in texts:
        with torch.no_grad():
            hidden = loaded.model(loaded.tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        mean = hidden.mean(0)
        made.append((mean / mean.norm()).tolist())
    return made


def test_ranks_are_those_of_a_brute_force(bert: LoadedModel, questions: QuestionSet) -> None:
    found = both_arms(bert, questions, TopK(k=3), batch_size=4)
    passages = list(dict.fromkeys(question.context for question in questions.questions))
    assert len(passages) == 7
    embedded = vectors(bert, passages)
    ranks = []
    for prediction in found.predictions:
        question = prediction.question
        [asked] = vectors(bert, [question.question])
        alike = [sum(a * b for a, b in zip(asked, passage, strict=True)) for passage in embedded]
        own = passages.index(question.context)
        ranks.append(1 + sum(other > alike[own] for other in alike))
        assert prediction.ranks is not None
        assert prediction.ranks["dense"] == ranks[-1]
        assert prediction.scores["dense"] == {"accuracy": float(ranks[-1] == 1), "reciprocal_rank": 1 / ranks[-1]}
        assert prediction.answers["dense"].startswith(f"passage {alike.index(max(alike)) + 1}: ")
        assert prediction.gold[0].startswith(f"passage {own + 1}: ")
        assert (prediction.answers["dense"] == prediction.gold[0]) == (ranks[-1] == 1)
    assert len(set(ranks)) > 2
    results = summarize(found)
    assert results["scores"]["dense"]["reciprocal_rank"] == pytest.approx(100 * sum(1 / rank for rank in ranks) / 9)
    assert results["scores"]["dense"]["accuracy"] == pytest.approx(100 * ranks.count(1) / 9)


def test_labels_say_number_title_and_first_words(bert: LoadedModel, questions: QuestionSet) -> None:
    gold = [prediction.gold[0] for prediction in both_arms(bert, questions, TopK(k=3)).predictions]
    assert gold[0] == "passage 1: Ann is in the attic . Ben is ..."
    assert gold[1] == "passage 2: Places: Ben is in the den . Cleo is ..."
    assert gold[7:] == [gold[0], gold[2]]


def test_in_the_dense_limit_both_arms_are_equal(bert: LoadedModel, questions: QuestionSet) -> None:
    results = summarize(both_arms(bert, questions, TopK(keep=1.0)))
    assert results["same_answer_share"] == 1
    assert set(results["scores"]["difference"].values()) == {0}
    assert results["kept"]["total"]["kept_share"] == 1
    assert results["mean_cosine"] == pytest.approx(1)
    assert results["mean_passage_cosine"] == pytest.approx(1)
    assert (results["mean_kl"], results["max_new_tokens"], results["task"]) == (None, None, "retrieval")


def test_the_patched_arm_ranks_with_its_own_passages(bert: LoadedModel, questions: QuestionSet) -> None:
    # Questions have 4 tokens: with k = 4 only passages change.
    found = both_arms(bert, questions, TopK(k=4))
    assert all(p.cosines is not None and p.cosines["question"] == pytest.approx(1) for p in found.predictions)
    assert all(p.cosines is not None and p.cosines["passage"] < 0.9999 for p in found.predictions)
    found = both_arms(bert, questions, TopK(k=1))
    assert all(p.cosines is not None and p.cosines["question"] < 0.9999 for p in found.predictions)
    assert any(p.ranks is not None and p.ranks["dense"] != p.ranks["patched"] for p in found.predictions)
    assert all(seconds > 0 for seconds in found.seconds.values())


def test_batch_size_does_not_matter(bert: LoadedModel, questions: QuestionSet) -> None:
    alone, together = (both_arms(bert, questions, TopK(k=3), batch_size=size) for size in (1, 5))
    assert [p.question for p in together.predictions] == list(questions.questions)
    assert [(p.ranks, p.answers) for p in alone.predictions] == [(p.ranks, p.answers) for p in together.predictions]
    for a, b in zip(alone.predictions, together.predictions, strict=True):
        assert a.cosines == pytest.approx(b.cosines, abs=1e-5)
    assert alone.meter.total().kept == together.meter.total().kept
    assert alone.meter.total().visible == together.meter.total().visible


def test_every_passage_is_read_once(bert: LoadedModel, questions: QuestionSet) -> None:
    texts = {question.context for question in questions.questions}
    lengths = [len(text.split()) for text in texts] + [len(q.question.split()) for q in questions.questions]
    rows = both_arms(bert, questions, TopK(k=3), batch_size=2).meter.total().rows
    assert rows == sum(lengths) * 2 * 4, "two layers of four heads"


def test_one_passage_is_nothing_to_rank(bert: LoadedModel, questions: QuestionSet) -> None:
    single = replace(questions, questions=(questions.questions[0], questions.questions[7]))
    with pytest.raises(DataError, match=r"q\.jsonl has a single passage for its 2 questions.*nothing to rank"):
        both_arms(bert, single, TopK(k=3))
    task_for(bert, single).calibration_inputs(single.questions[0])


def test_equals_are_ranked_in_their_order() -> None:
    passages = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert ranking(torch.tensor([1.0, 0.0]), passages).tolist() == [1, 3, 0, 2, 4]
    assert ranking(torch.tensor([float("nan"), 0.0]), passages).tolist() == [0, 1, 2, 3, 4], "no rank 1 for everyone"


@pytest.mark.parametrize("mode", ["cls_token", "max_tokens", "lasttoken"])
def test_pooling_follows_the_folder(mode: str, tmp_path: Path, bert: LoadedModel, questions: QuestionSet) -> None:
    folder = tiny_language_models.save("bert", tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    loaded = load_model(str(folder))
    pooled, mean = (summarize(both_arms(model, questions, TopK(k=3))) for model in (loaded, bert))
    assert pooled["prompt"]["style"] != mean["prompt"]["style"]
    assert pooled["mean_passage_cosine"] != mean["mean_passage_cosine"]


def test_long_texts_are_cut_to_the_positions(tmp_path: Path, questions: QuestionSet) -> None:
    loaded = load_model(str(tiny_language_models.save("bert", tmp_path / "bert", max_position_embeddings=20)))
    task = task_for(loaded, questions)
    assert task.tokens(questions.questions[0]) == 20 + 4
    found = both_arms(loaded, questions, TopK(k=3))
    assert (found.left_out, len(found.predictions)) == (0, 9)
    long = load_model(str(tiny_language_models.save("bert", tmp_path / "long")))
    long.tokenizer.model_max_length = 12
    assert task_for(long, questions).tokens(questions.questions[0]) == 12 + 4


def test_passage_and_question_are_calibrated_on(bert: LoadedModel, questions: QuestionSet) -> None:
    task = task_for(bert, questions)
    passage, question = task.calibration_inputs(questions.questions[0])
    assert bert.tokenizer.decode(passage["input_ids"][0]) == questions.questions[0].context
    assert bert.tokenizer.decode(question["input_ids"][0]) == questions.questions[0].question
    assert all(bool((sample["attention_mask"] == 1).all()) for sample in (passage, question))
    assert task.first_input(questions.questions[0]).split("\n") == [
        questions.questions[0].question,
        questions.questions[0].context,
    ]


def test_a_decoder_can_be_an_encoder(tmp_path: Path, questions: QuestionSet) -> None:
    """Causal embedding models read from the left, so that padding on the right is out of sight."""
    folder = tiny_language_models.save("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    loaded = load_model(str(folder))
    alone, together = (both_arms(loaded, questions, TopK(k=3), batch_size=size) for size in (1, 5))
    assert [p.ranks for p in alone.predictions] == [p.ranks for p in together.predictions]
    assert together.task.style.endswith("last token pooling")
