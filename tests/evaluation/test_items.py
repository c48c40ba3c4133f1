"""Item sets: sampling, fingerprints and groups."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.items import (
    Choice,
    Item,
    ItemSet,
    Labelled,
    Question,
    Text,
    content_hash,
    fingerprint,
    letter,
)
from hypothesis import given
from hypothesis import strategies as st


def make_set(count: int, unanswerable: int | None = None) -> ItemSet:
    questions = (
        Question(f"q{i}", f"Room {i} is blue.", f"Which colour is room {i}?", () if i == unanswerable else ("blue",))
        for i in range(count)
    )
    return make_question_set("rooms", "validation", questions)


@given(count=st.integers(1, 60), limit=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_sample_is_a_subset_in_order(count: int, limit: int, seed: int) -> None:
    everything = make_set(count)
    sample = everything.sample(limit, seed)
    assert len(sample) == min(limit, count)
    positions = [everything.items.index(question) for question in sample.items]
    assert positions == sorted(set(positions))
    assert sample == everything.sample(limit, seed)


def test_sample_depends_on_the_seed() -> None:
    everything = make_set(100)
    assert everything.sample(10, seed=0) != everything.sample(10, seed=1)


@pytest.mark.parametrize("limit", [None, 5, 6])
def test_sample_of_everything_is_the_set_itself(limit: int | None) -> None:
    everything = make_set(5)
    assert everything.sample(limit, seed=0) is everything


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match="--limit must be at least 1"):
        make_set(5).sample(limit, seed=0)


def test_sample_moves_no_global_generator() -> None:
    before = random.getstate()
    make_set(50).sample(7, seed=3)
    assert random.getstate() == before


def test_sample_keeps_what_belongs_to_the_whole_set() -> None:
    everything = make_set(40, unanswerable=11)
    assert everything.dataset.name == "squad_v2"
    for seed in range(5):
        sample = everything.sample(1, seed)
        assert sample.dataset.name == "squad_v2"
        assert sample.fingerprint == everything.fingerprint


def test_fingerprint_covers_what_is_asked_and_scored() -> None:
    question = Question("q", "The jar holds sand.", "What is in the jar?", ("sand",))
    variants = [
        [question],
        [replace(question, id="r")],
        [replace(question, context="The jar holds salt.")],
        [replace(question, question="What is inside?")],
        [replace(question, answers=())],
        [replace(question, answers=("sand", "Sand"))],
        [question, replace(question, id="r")],
        [replace(question, id="r"), question],
    ]
    assert len({fingerprint(questions) for questions in variants}) == len(variants)
    assert fingerprint([replace(question, title="Jars", kind="copy")]) == fingerprint([question])
    assert make_question_set("jars", "", [question]).dataset.name == "squad"


def test_fingerprint_is_stable() -> None:
    question = Question("q", "Zoë's jar — sand", "What?", ("sand",))
    assert fingerprint([question]) == "4091953f35784b84aa164745d9106ce2e2394691a37cc528f53bd4d015fb6328"


@given(smaller=st.integers(1, 30), larger=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_larger_sample_contains_the_smaller_one(smaller: int, larger: int, seed: int) -> None:
    everything = make_set(30)
    smaller, larger = sorted((smaller, larger))
    assert set(everything.sample(smaller, seed).items) <= set(everything.sample(larger, seed).items)


CHOICE = Choice("c", "Which?", ("one", "two"), 1, "Both are numbers.")
LABELLED = Labelled("l", ("good",), 0)
PAIR = Labelled("p", ("good", "bad"), 0)
TEXT = Text("t", "Words.", "book")


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        (CHOICE, [{"question": "What?"}, {"choices": ("one", "three")}, {"label": 0}, {"context": ""}]),
        (PAIR, [{"texts": ("good",)}, {"texts": ("bad", "good")}, {"label": 1}]),
        (TEXT, [{"text": "Word."}]),
    ],
)
def test_content_of_the_other_kinds(item: Item, changes: list[dict[str, object]]) -> None:
    variants = [item, *(replace(item, **change) for change in changes)]
    assert len({content_hash(variant) for variant in variants}) == len(variants)
    assert len({fingerprint([variant]) for variant in variants}) == len(variants)
    again = replace(item, id="other", kind="other")
    assert content_hash(again) == content_hash(item)
    assert fingerprint([again]) != fingerprint([item])


def test_content_hash_looks_through_distractors() -> None:
    question = Question("q", "The jar holds sand.", "What?", ("sand",))
    surrounded = replace(question, context="Rain.\n\nThe jar holds sand.", passage=question.context)
    assert content_hash(surrounded) == content_hash(question)
    assert content_hash(replace(surrounded, passage="")) != content_hash(question)


@pytest.mark.parametrize(
    ("item", "group"),
    [
        (Question("q", "Sand.", "What?", ()), "Sand."),
        (Question("q", "Rain.\n\nSand.", "What?", (), passage="Sand."), "Sand."),
        (CHOICE, "Both are numbers."),
        (replace(CHOICE, context=""), "c"),
        (LABELLED, "l"),
        (PAIR, "good"),
        (TEXT, "book"),
        (replace(TEXT, document=""), "t"),
    ],
)
def test_items_that_share_something_are_one_group(item: Item, group: str) -> None:
    assert item.group == group


def test_letters() -> None:
    assert [letter(index) for index in (0, 1, 25, 26)] == ["A", "B", "Z", "27"]
