"""Other passages around the one that a question is about."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.distractors import with_distractors
from hf_sparsify.evaluation.items import Choice, ItemSet, Labelled, Question, content_hash, make_item_set


def rooms(count: int, answer: str = "colour {}") -> ItemSet:
    questions = (
        Question(f"q{i}", f"Room {i} has colour {i}.", f"Which is room {i}'s?", (answer.format(i),), f"t{i}", "k")
        for i in range(count)
    )
    return make_question_set("rooms", "validation", questions)


POOL = make_question_set(
    "halls", "train", [Question(f"h{i}", f"Hall {i % 40} is tall.", f"How {i}?", ("tall",)) for i in range(80)]
)


def test_passage_is_among_the_others() -> None:
    items = rooms(20)
    longer = with_distractors(items, 4, 0, POOL)
    for before, after in zip(items.items, longer.items, strict=True):
        passages = after.context.split("\n\n")
        assert after.passage == after.group == before.context
        assert len(passages) == len(set(passages)) == 5
        assert before.context in passages
        assert set(passages) - {before.context} <= {question.context for question in POOL.items}
        assert replace(after, context=before.context, passage="") == before
        assert content_hash(after) == content_hash(before)
    assert (longer.fingerprint, longer.dataset, longer.name) == (items.fingerprint, items.dataset, items.name)


def test_none_are_no_change() -> None:
    items = rooms(3)
    assert with_distractors(items, 0, 0, POOL) is items


def test_every_place_is_as_likely() -> None:
    count, trials = 4, 2000
    longer = with_distractors(rooms(trials), count, 1, POOL)
    places = Counter(question.context.split("\n\n").index(question.passage) for question in longer.items)
    expected = trials / (count + 1)
    chi_square = sum((places[place] - expected) ** 2 / expected for place in range(count + 1))
    assert chi_square < 18.5  # four degrees of freedom: one seed in a thousand would be above


def test_every_other_passage_is_as_likely() -> None:
    longer = with_distractors(rooms(2000), 2, 1, POOL)
    seen = Counter(
        passage for question in longer.items for passage in question.context.split("\n\n") if passage[:4] == "Hall"
    )
    expected = 2000 * 2 / 40
    assert sum((seen[passage] - expected) ** 2 / expected for passage in seen) + expected * (40 - len(seen)) < 73


def test_depends_on_seed_and_id_alone() -> None:
    items = rooms(30)
    everything = with_distractors(items, 3, 5, POOL)
    assert everything == with_distractors(items, 3, 5, POOL)
    assert everything.items != with_distractors(items, 3, 6, POOL).items
    few = with_distractors(items.sample(7, seed=2), 3, 5, POOL)
    assert set(few.items) <= set(everything.items)
    back = with_distractors(replace(items, items=items.items[::-1]), 3, 5, POOL)
    assert back.items == everything.items[::-1]


def test_moves_no_global_generator() -> None:
    before = random.getstate()
    with_distractors(rooms(5), 2, 0, POOL)
    assert random.getstate() == before


def test_no_other_passage_holds_an_answer() -> None:
    items = make_question_set("x", "", [Question("a", "The SKY.", "What?", ("sky", "HALL 1"))])
    pool = make_question_set(
        "y",
        "",
        [Question(str(i), text, "?", ("x",)) for i, text in enumerate(("The SKY.", "Skyline", "Hall 12", "B", "C"))],
    )
    (question,) = with_distractors(items, 2, 0, pool).items
    assert sorted(question.context.split("\n\n")) == ["B", "C", "The SKY."]
    with pytest.raises(UsageError) as caught:
        with_distractors(items, 3, 0, pool)
    assert str(caught.value) == (
        "--distractors 3: for question a data set y has only 2 other passages without a gold answer in them; use fewer"
    )


def test_passages_of_the_pool_are_those_without_distractors() -> None:
    items = rooms(3, answer="nothing")
    again = with_distractors(items, 2, 0, with_distractors(items, 2, 1, POOL))
    assert all(len(question.context.split("\n\n")) == 3 for question in again.items)


@pytest.mark.parametrize(
    "item", [Choice("c", "Which?", ("a", "b"), 0, "A passage."), Labelled("l", ("a",), 0)], ids=["choice", "labelled"]
)
def test_only_questions_have_passages(item: Choice | Labelled) -> None:
    other = make_item_set("other", "", [item], DATASETS["boolq"])
    with pytest.raises(UsageError, match="--distractors 2: data set other has no questions"):
        with_distractors(other, 2, 0, POOL)
    with pytest.raises(UsageError, match="--distractors 2: data set other has no questions"):
        with_distractors(rooms(2), 2, 0, other)


def test_negative_count_is_refused() -> None:
    with pytest.raises(UsageError, match="--distractors must be at least 0, not -1"):
        with_distractors(rooms(2), -1, 0, POOL)
