"""Question sets: sampling and fingerprints."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.questions import Question, QuestionSet, fingerprint, make_question_set
from hypothesis import given
from hypothesis import strategies as st


def make_set(count: int, unanswerable: int | None = None) -> QuestionSet:
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
    positions = [everything.questions.index(question) for question in sample.questions]
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
    assert everything.version_2
    for seed in range(5):
        sample = everything.sample(1, seed)
        assert sample.version_2
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
    assert not make_question_set("jars", "", [question]).version_2


def test_fingerprint_is_stable() -> None:
    question = Question("q", "Zoë's jar — sand", "What?", ("sand",))
    assert fingerprint([question]) == "4091953f35784b84aa164745d9106ce2e2394691a37cc528f53bd4d015fb6328"
