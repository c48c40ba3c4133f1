"""Questions from files in every format; what is wrong with a bad file is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.sources import load_items

RECORDS: list[dict[str, Any]] = [
    {
        "id": "t1",
        "title": "Tides",
        "context": "  The ferry leaves at noon,\u2028from pier nine. ",
        "question": "When does it leave?",
        "answers": {"text": ["noon", "at noon", "noon"], "answer_start": [21, 18, 21]},
    },
    {
        "id": "t2",
        "title": "Tides",
        "context": "Zoë paints boats green.",
        "question": "Who paints?",
        "answers": {"text": ["Zoë"], "answer_start": [0]},
    },
]
QUESTIONS = (
    Question("t1", RECORDS[0]["context"], "When does it leave?", ("noon", "at noon"), "Tides"),
    Question("t2", "Zoë paints boats green.", "Who paints?", ("Zoë",), "Tides"),
)


def nested(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records as SQuAD v1.1 nests them, one paragraph each."""
    paragraphs = []
    for record in records:
        answers = record["answers"]
        golds = [{"text": t, "answer_start": s} for t, s in zip(answers["text"], answers["answer_start"], strict=True)]
        qa = {"id": record["id"], "question": record["question"], "answers": golds}
        paragraphs.append({"context": record["context"], "qas": [qa]})
    return {"version": "1.1", "data": [{"title": "Tides", "paragraphs": paragraphs}]}


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_file


Write = Callable[[str, str], str]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nested.json", json.dumps(nested(RECORDS), indent=1)),
        ("flat.json", json.dumps(RECORDS)),
        ("flat.jsonl", lines(RECORDS)),
        ("upper.JSONL", lines(RECORDS)),
        ("blank-lines.jsonl", "\n" + lines(RECORDS).replace("\n", "\r\n\n")),
        ("lines.json", lines(RECORDS)),
        ("bom.jsonl", "\ufeff" + lines(RECORDS)),
        ("strings.jsonl", lines([{**r, "answers": r["answers"]["text"]} for r in RECORDS])),
        ("objects.jsonl", lines([{**r, "answers": [{"text": t} for t in r["answers"]["text"]]} for r in RECORDS])),
    ],
)
def test_every_text_format_gives_the_same_questions(write: Write, name: str, text: str) -> None:
    path = write(name, text)
    loaded = load_items(path)
    assert loaded.items == QUESTIONS
    assert (loaded.name, loaded.split, loaded.dataset.name) == (path, "", "squad")
    assert loaded.fingerprint == load_items(write("reference.jsonl", lines(RECORDS))).fingerprint


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "flat.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    assert load_items(str(path)).items == QUESTIONS
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"flat\.parquet is not a readable Parquet file"):
        load_items(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"flat\.parquet is empty"):
        load_items(str(path))


def test_one_record_kind_and_missing_title(write: Write) -> None:
    record = {"id": "x", "context": "c", "question": "q", "answers": ["c"], "kind": "copy", "title": None}
    assert load_items(write("one.json", json.dumps(record, indent=2))).items == (
        Question("x", "c", "q", ("c",), "", "copy"),
    )


def test_questions_without_an_answer(write: Write) -> None:
    content = nested(RECORDS)
    impossible = {"id": "t3", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": []}
    content["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = False
    content["data"][0]["paragraphs"][0]["qas"].append(impossible)
    loaded = load_items(write("v2.json", json.dumps(content)))
    assert [question.answers for question in loaded.items] == [("noon", "at noon"), (), ("Zoë",)]
    assert loaded.dataset.name == "squad_v2"
    flat = {**RECORDS[1], "answers": {"text": [], "answer_start": []}}
    assert load_items(write("v2.jsonl", lines([flat]))).items[0].answers == ()


def changed(**changes: Any) -> dict[str, Any]:
    return {**RECORDS[1], **changes}


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in RECORDS[1].items() if key != field}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("id"), "field 'id' is missing"),
        (without("context"), "field 'context' is missing"),
        (without("question"), "field 'question' is missing"),
        (without("answers"), "field 'answers' is missing"),
        (changed(id=7), "field 'id' must be a string, not a number"),
        (changed(id=" "), "field 'id' is blank"),
        (changed(context=""), "field 'context' is blank"),
        (changed(question=None), "field 'question' must be a string, not null"),
        (changed(title=["x"]), "field 'title' must be a string, not a list"),
        (changed(answers="green"), "field 'answers' must be a list of strings, not a string"),
        (changed(answers={"texts": []}), "answers: field 'text' is missing"),
        (changed(answers={"text": "green"}), "field 'answers.text' must be a list of strings, not a string"),
        (changed(answers=["green", True]), "answers[1] must be a string, not true or false"),
        (changed(answers=[""]), "answers[0] is blank; a question without an answer has an empty list"),
        (changed(answers=[{"answer": "green"}]), "answers[0]: field 'text' is missing"),
        (changed(is_impossible="no"), "field 'is_impossible' must be true or false, not a string"),
        (changed(context="\ud800"), "field 'context' holds half a Unicode surrogate pair"),
        (RECORDS[0], "the id 't1' was already used at line 1"),
        (["t2"], "expected an object, not a list"),
    ],
)
def test_bad_record_is_named_by_line(write: Write, record: Any, message: str) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in (RECORDS[0], record))
    path = write("bad.jsonl", text)
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert str(caught.value) == f"{path}: line 2: {message}"


def damage(path: list[Any], value: Any) -> str:
    """The nested records with the value at one place replaced, or removed for None."""
    content: Any = nested(RECORDS)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["data"], {}, ": field 'data' must be a list, not an object"),
        (["data", 0], "x", ": data[0]: expected an object, not a string"),
        (["data", 0, "paragraphs"], None, ": data[0]: field 'paragraphs' is missing"),
        (["data", 0, "paragraphs", 1, "context"], None, ": data[0].paragraphs[1]: field 'context' is missing"),
        (["data", 0, "paragraphs", 1, "qas"], 3, ": data[0].paragraphs[1]: field 'qas' must be a list, not a number"),
        (["data", 0, "paragraphs", 1, "qas", 0], 3, ": data[0].paragraphs[1].qas[0]: expected an object, not a number"),
        (
            ["data", 0, "paragraphs", 1, "qas", 0, "id"],
            "t1",
            ": data[0].paragraphs[1].qas[0]: the id 't1' was already used at data[0].paragraphs[0].qas[0]",
        ),
        (["data"], [], " holds no items"),
        (["data", 0, "paragraphs"], [], " holds no items"),
    ],
)
def test_bad_nesting_is_named_by_position(write: Write, path: list[Any], value: Any, message: str) -> None:
    file = write("bad.json", damage(path, value))
    with pytest.raises(DataError) as caught:
        load_items(file)
    assert str(caught.value) == f"{file}{message}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", r"a\.json is empty"),
        ("a.jsonl", " \n\n", r"a\.jsonl is empty"),
        ("a.json", "[]", r"a\.json holds no items"),
        ("a.json", "{", r"a\.json is not JSON: .* at column 2"),
        ("a.json", '{\n"data": [1,]\n}', r"a\.json is not JSON: .* at line 2"),
        ("a.json", "{}", r"expected SQuAD's \{\"data\": \[\.\.\.\]\} or a list of records"),
        ("a.json", '"text"', "expected SQuAD's"),
        ("a.json", "[" * 100_000, "is not usable JSON"),
        ("a.jsonl", lines(RECORDS) + "{oops\n", r"a\.jsonl: line 3 is not JSON"),
        ("a.json", lines(RECORDS) + "{oops\n", r"a\.json: line 3 is not JSON"),
        ("a.xyz", "id,question", r"a\.xyz: cannot tell the format .* \.json, \.jsonl, .*\.txt or \.md"),
    ],
)
def test_bad_files(write: Write, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_items(write(name, text))


def test_file_that_is_not_there_not_text_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_items("./nowhere.json")
    assert str(caught.value) == "no such file: ./nowhere.json"
    with pytest.raises(DataError, match=r"is a directory; name a \.json, \.jsonl, .* or \.md file"):
        load_items(str(tmp_path))
    for name in ("~nobody-of-that-name/a.json", "x" * 5000 + ".json"):
        with pytest.raises(DataError, match="no such file"):
            load_items(name)
    path = tmp_path / "latin.json"
    path.write_bytes('["Zoë"]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.json is not UTF-8 text \(byte 4\)"):
        load_items(str(path))


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_plain_text(write: Write, name: str) -> None:
    text = "Ön the kiln.\r\n\r\n" + "word " * 500
    loaded = load_items(write(name, "\ufeff" + text))
    assert loaded.dataset.name == "text"
    assert [(item.id, item.document, item.group) for item in loaded.items] == [
        ("text-1", "", "text-1"),
        ("text-2", "", "text-2"),
    ]
    assert "".join(item.text for item in loaded.items) == text.replace("\r\n", "\n")
    with pytest.raises(DataError, match=r"is empty"):
        load_items(write(name, " \n\n"))


def test_record_that_could_be_anything(write: Write) -> None:
    path = write("a.jsonl", '{"prompt": "x", "reply": "y"}\n')
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert str(caught.value) == (
        f"{path}: line 1: no known data set has these fields: prompt, reply; `sparsify datasets` lists those there "
        "are, and NAME=FILE reads a file as one of them"
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "choices": ["a", "b"]}, "field 'answerKey' is missing"),
        ({"question": "q", "passage": "p"}, "field 'answer' is missing"),
        ({"question": "q"}, "field 'id' is missing"),
        (["q"], "expected an object, not a list"),
    ],
)
def test_first_record_lacks_something(write: Write, record: Any, message: str) -> None:
    path = write("a.jsonl", lines([record]))
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert str(caught.value) == f"{path}: line 1: {message}"


def test_one_record_of_another_kind(write: Write) -> None:
    record = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    loaded = load_items(write("one.json", json.dumps(record, indent=2)))
    assert (loaded.dataset.name, loaded.items[0].label) == ("arc_easy", 0)
    assert load_items(write("lines.json", lines([record, record]))).items[1].id == "1"
