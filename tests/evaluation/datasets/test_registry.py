"""The data sets that are known, and what a record is taken for."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS, dataset_of, datasets_rows, nearest_dataset
from hf_sparsify.evaluation.datasets.base import ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT
from hf_sparsify.evaluation.datasets.squad import SQUAD, make_question_set
from hf_sparsify.evaluation.formats import items_from_records
from hf_sparsify.evaluation.items import Question
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ("id title context question answers", "squad"),
        ("id question choices answerKey", "arc_easy"),
        ("id question question_concept choices answerKey", "commonsense_qa"),
        ("id question_stem choices answerKey", "openbookqa"),
        ("ind ctx ctx_a ctx_b endings label", "hellaswag"),
        ("question passage answer", "boolq"),
        ("example_id article question options answer", "race"),
        ("document question answers", "narrativeqa"),
        ("sentence label idx", "labels"),
        ("text label", "labels"),
        ("text", "text"),
        ("text meta", "text"),
        ("audio text", "asr"),
        ("audio sentence client_id", "asr"),
        ("file_name text", "text"),
        ("question answers", None),
        ("", None),
    ],
)
def test_recognised_by_fields(fields: str, name: str | None) -> None:
    found = dataset_of(dict.fromkeys(fields.split()))
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ("question", "squad"),
        ("question answers", "squad"),
        ("context answers", "squad"),
        ("question choices", "arc_easy"),
        ("passage answer", "boolq"),
        ("context", None),
        ("prompt", None),
    ],
)
def test_meant_for(fields: str, name: str | None) -> None:
    found = nearest_dataset(dict.fromkeys(fields.split()))
    assert (found and found.name) == name


@pytest.mark.parametrize("record", [None, [], "text"])
def test_what_is_no_record(record: object) -> None:
    assert dataset_of(record) is None


def test_every_data_set_is_complete() -> None:
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.task in (ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT)
        assert dataset.hub or dataset.fields or dataset.task == ENCODED
        assert len(dataset.labels) == len(dataset.words)


def test_rows() -> None:
    rows = datasets_rows()
    assert [row[0] for row in rows] == ["demo", *DATASETS]
    by_name = {row[0]: row[1:4] for row in rows}
    assert by_name["demo"] == ("question answering", "F1", "")
    assert by_name["arc_easy"] == ("multiple choice", "accuracy (norm.)", "allenai/ai2_arc (ARC-Easy)")
    assert by_name["sst2"] == ("text classification", "accuracy", "nyu-mll/glue (sst2)")
    assert by_name["unifiedqa"] == ("encoded questions", "EM", "")
    assert by_name["librispeech"] == ("speech recognition", "word accuracy", "openslr/librispeech_asr (clean)")
    assert by_name["text"] == ("plain text", "top-1 agreement", "")
    assert all(row[4] for row in rows)


def test_splits_have_the_data_sets_own_names() -> None:
    mnli = DATASETS["mnli"]
    splits = {name: mnli.split_name(name) for name in ("train", "validation", "validation_mismatched")}
    assert splits == {
        "train": "train",
        "validation": "validation_matched",
        "validation_mismatched": "validation_mismatched",
    }
    assert SQUAD.split_name("validation") == "validation"


def test_questions_without_an_answer_make_squad_v2() -> None:
    answered, other = Question("1", "c", "q", ("c",)), Question("2", "c", "q", ())
    assert make_question_set("x", "", [answered]).dataset.name == "squad"
    assert make_question_set("x", "", [answered, other]).dataset.name == "squad_v2"


FIELDS = (
    *("id", "idx", "context", "question", "answers", "choices", "answerKey", "question_stem", "question_concept"),
    *("ctx", "ctx_a", "ctx_b", "endings", "label", "activity_label", "passage", "answer", "text", "sentence"),
    *("sentence1", "sentence2", "premise", "hypothesis", "document", "kind", "title", "is_impossible", "input"),
    *("article", "options", "summary"),
    *("audio", "speaker_id"),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 4), st.floats(), st.text(max_size=3), st.just("1"))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(st.text(min_size=1, max_size=2), min_size=2, max_size=3),
    st.dictionaries(st.sampled_from(["text", "label"]), st.lists(SCALARS, max_size=3), max_size=2),
)
RECORDS = st.one_of(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8), VALUES)


@given(st.sampled_from([None, *DATASETS]), st.lists(RECORDS, max_size=3))
def test_whatever_a_record_holds_there_are_items_or_one_sentence(name: str | None, records: list[Any]) -> None:
    dataset = DATASETS[name] if name else None
    try:
        loaded = items_from_records([(f"line {n}", r) for n, r in enumerate(records)], "file", "", dataset)
    except DataError as error:
        told, loaded = str(error), None
    if loaded is None:
        assert told.startswith("file")
        return
    for item in loaded.items:
        for style in ("chat-template", "completion", "t5", "unifiedqa"):
            assert loaded.dataset.prompt(item, style).text


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_refuses_what_is_no_object(name: str) -> None:
    with pytest.raises(DataError, match=r"^file: line 1: expected an object, not a number$"):
        items_from_records([("line 1", 3)], "file", "", DATASETS[name])
