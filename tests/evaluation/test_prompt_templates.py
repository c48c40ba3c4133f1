"""Prompt templates: the turn they make of an item, and what cannot be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.items import Choice, Labelled, Question, Text
from hf_sparsify.evaluation.prompts import Turn, read_template, turn_from_template

QUESTION = Question("q1", "Mira Keeps nine Bees.", "How many Bees?", ("nine",))
FIELDS = {"context": "Bees {answer} hum.", "question": "Who hums?"}


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        ("{question} {context}", Turn("Who hums? Bees {answer} hum.")),
        ("{context}\nQ: {question}\nA: {answer}", Turn("Bees {answer} hum.\nQ: Who hums?", "A:")),
        ('{question}\nIt is "{answer}"!', Turn("Who hums?", 'It is "', '"!')),
        ("{question} Answer: {answer}", Turn("Who hums? Answer:")),
        ("{question}\n\n{answer}", Turn("Who hums?")),
        ("{ } {a-b} {question}", Turn("{ } {a-b} Who hums?")),
        ("{question.upper} {0}", None),
        ("{title}", None),
        ("{answer} {answer}", None),
        ("Reply {answer} to {other}", None),
    ],
)
def test_turn_from_a_template(template: str, turn: Turn | None) -> None:
    if turn is not None:
        assert turn_from_template(template, FIELDS) == turn
        return
    with pytest.raises(UsageError, match="--prompt-template: "):
        turn_from_template(template, FIELDS)


def test_unknown_name_in_a_template_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        turn_from_template("{passage}", FIELDS)
    assert str(caught.value) == (
        "--prompt-template: there is no {passage} here; the names are {context}, {question}, {answer}"
    )


@pytest.mark.parametrize(
    ("item", "template", "text"),
    [
        (QUESTION, "{context}|{question}|{title}", "Mira Keeps nine Bees.|How many Bees?|"),
        (
            Choice("c", "Which?", ("one", "two"), 1, "Both."),
            "{context}|{question}|{choices}",
            "Both.|Which?|A. one\nB. two",
        ),
        (Labelled("l", ("a b",), 0), "{text}|{text2}|", "a b||"),
        (Labelled("l", ("a b", "c d"), 0), "{text}|{text2}|", "a b|c d|"),
    ],
)
def test_names_of_every_kind_of_item(item: Any, template: str, text: str) -> None:
    assert turn_from_template(template, item.fields()).text == text


def test_a_text_has_no_names() -> None:
    assert Text("t", "words").fields() == {}


def test_template_files(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("\ufeffQ: {question}\nA: {answer}\n", encoding="utf-8")
    assert read_template(path) == "Q: {question}\nA: {answer}"
    path.write_text(" \n")
    with pytest.raises(DataError, match=r"the prompt template .*prompt\.txt is blank"):
        read_template(path)
    for same in ("Where?", "{answer}", "{question"):
        path.write_text(same)
        with pytest.raises(DataError, match=r"the prompt template .*prompt\.txt asks all items the same"):
            read_template(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"cannot read the prompt template .*prompt\.txt"):
        read_template(path)
    with pytest.raises(DataError, match=r"cannot read the prompt template .*none\.txt: No such file"):
        read_template(tmp_path / "none.txt")
