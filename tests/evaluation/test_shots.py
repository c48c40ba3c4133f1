"""Answered examples: which are drawn, and their answers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.datasets.labels import with_labels
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.items import Choice, Item, ItemSet, Labelled, Question, Text, make_item_set
from hf_sparsify.evaluation.shots import draw_shots, shot_answer


def questions(count: int, name: str = "q", start: int = 0) -> ItemSet:
    return make_question_set(
        "jars",
        "train",
        [Question(f"{name}{i}", f"Jar {i}.", "Which?", (f"{i}",)) for i in range(start, start + count)],
    )


NOTHING = questions(1, start=999)


def test_drawn_by_the_seed() -> None:
    train = questions(50)
    shots = draw_shots(train, 5, 3, NOTHING)
    assert len(set(shots)) == 5
    assert set(shots) <= set(train.items)
    assert shots == draw_shots(train, 5, 3, NOTHING)
    assert shots != draw_shots(train, 5, 4, NOTHING)
    assert draw_shots(train, 2, 3, NOTHING) == shots[:2]
    assert draw_shots(train, 0, 3, NOTHING) == ()


def test_moves_no_global_generator() -> None:
    before = random.getstate()
    draw_shots(questions(50), 5, 3, NOTHING)
    assert random.getstate() == before


def test_what_is_asked_is_no_example() -> None:
    train = questions(20)
    # The same questions under other ids, two of them with distractors around their passage.
    asked = questions(17, name="other")
    around = tuple(replace(q, context=f"Rain.\n\n{q.context}", passage=q.context) for q in asked.items[:2])
    avoid = replace(asked, items=around + asked.items[2:])
    for seed in range(5):
        assert {shot.id for shot in draw_shots(train, 3, seed, avoid)} == {"q17", "q18", "q19"}
    with pytest.raises(UsageError) as caught:
        draw_shots(train, 4, 0, avoid)
    assert str(caught.value) == "--shots 4: data set jars (train) has only 3 examples that are not asked themselves"


def test_examples_have_an_answer_and_differ() -> None:
    open_question = Question("open", "Jar.", "Which?", ())
    twice = [Question("a", "Jar.", "Which?", ("1",)), Question("b", "Jar.", "Which?", ("1",))]
    train = make_question_set("jars", "", [open_question, *twice])
    for seed in range(5):
        (shot,) = draw_shots(train, 1, seed, NOTHING)
        assert shot.id in ("a", "b")
    with pytest.raises(UsageError, match="--shots 2: data set jars has only 1 examples"):
        draw_shots(train, 2, 0, NOTHING)


def test_texts_have_no_examples() -> None:
    texts = make_item_set("book.txt", "", [Text("t", "Words.")], DATASETS["text"])
    with pytest.raises(UsageError, match=r"--shots 1: data set book\.txt is plain text"):
        draw_shots(texts, 1, 0, texts)


def test_negative_count_is_refused() -> None:
    with pytest.raises(UsageError, match="--shots must be at least 0, not -1"):
        draw_shots(NOTHING, -1, 0, NOTHING)


@pytest.mark.parametrize(
    ("item", "name", "answer"),
    [
        (Question("q", "c", "q", ("first", "second")), "squad", "first"),
        (Choice("c", "q", ("one", "two"), 1), "arc_easy", "two"),
        (Labelled("l", ("a",), 1), "cola", "yes"),
    ],
)
def test_answers(item: Item, name: str, answer: str) -> None:
    assert shot_answer(item, DATASETS[name]) == answer


def test_answer_is_the_word_for_a_label() -> None:
    assert shot_answer(Labelled("l", ("a",), 0), with_labels(["not_apt", "apt"])) == "not apt"


@pytest.mark.parametrize("item", [Question("q", "c", "q", ()), Text("q", "words")])
def test_item_without_an_answer(item: Item) -> None:
    with pytest.raises(UsageError, match="--shots: item q of data set squad has no answer to show"):
        shot_answer(item, DATASETS["squad"])
