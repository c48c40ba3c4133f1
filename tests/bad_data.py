"""Data files that hold something else than questions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_language_models
from bad_files import BENCH, EVAL, Damage
from fault_drill import Case
from mutations import mutated, mutated_json

RECORDS = tiny_language_models.records(3)
FIRST = json.dumps(RECORDS[0])
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def lines(*texts: str) -> bytes:
    return "\n".join(texts).encode("utf-8", "surrogatepass")


def changed(**fields: Any) -> bytes:
    """Two good records around one with other fields."""
    return lines(FIRST, json.dumps({**RECORDS[1], **fields}), json.dumps(RECORDS[2]))


def without(field: str) -> bytes:
    left = [{key: value for key, value in record.items() if key != field} for record in RECORDS]
    return lines(*map(json.dumps, left))


def squad(data: Any) -> bytes:
    return json.dumps({"version": "1.1", "data": data}).encode()


def nested(**fields: Any) -> bytes:
    """SQuAD's nesting with something else in one place."""
    qa = {"id": "a", "question": "Where ?", "answers": [{"text": "den", "answer_start": 0}], **fields}
    return squad([{"title": "t", "paragraphs": [{"context": "den", "qas": [qa]}]}])


# Name -> content that no command may take.
WRONG: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b" \n\n\t\n",
    "mark.jsonl": b"\xef\xbb\xbf",
    "utf16.jsonl": FIRST.encode("utf-16"),
    "latin.jsonl": lines(FIRST, '{"id": "') + b'\xe9"}',
    "zeros.jsonl": bytes(1000),
    "broken.jsonl": lines(FIRST, "{oops"),
    "cut.jsonl": lines(FIRST, FIRST[:40]),
    "number.jsonl": lines(FIRST, "3"),
    "list.jsonl": lines("[1, 2]"),
    "null.jsonl": lines("null"),
    "text.jsonl": lines('"a text"'),
    "nan.jsonl": lines(FIRST, "NaN"),
    "twice.jsonl": lines(FIRST, FIRST),
    "deep.jsonl": lines(FIRST, "[" * 100_000),
    "long-number.jsonl": lines(FIRST, "9" * 10_000),
    "surrogate.jsonl": changed(question="\ud800"),
    "huge-broken-line.jsonl": b'{"id": "x", "context": "' + b"word " * 400_000,
    "no-context.jsonl": without("context"),
    "no-question.jsonl": without("question"),
    "no-answers.jsonl": without("answers"),
    "null-context.jsonl": changed(context=None),
    "number-context.jsonl": changed(context=3),
    "list-question.jsonl": changed(question=["Where ?"]),
    "text-answers.jsonl": changed(answers=3),
    "null-answer.jsonl": changed(answers=[None]),
    "object-answers.jsonl": changed(answers={"text": 3}),
    "deep-answers.jsonl": changed(answers=[[["den"]]]),
    "object-id.jsonl": changed(id={}),
    "same-id.jsonl": changed(id="q0"),
    "other-columns.jsonl": lines('{"a": 1, "b": 2}'),
    "empty-object.jsonl": lines("{}"),
    "empty.json": b"",
    "broken.json": b'{"data": [',
    "number.json": b"3",
    "empty-list.json": b"[]",
    "no-data.json": b'{"version": "1.1"}',
    "null-data.json": squad(None),
    "empty-data.json": squad([]),
    "text-data.json": squad(["x"]),
    "no-paragraphs.json": squad([{"title": "t"}]),
    "null-paragraphs.json": squad([{"paragraphs": None}]),
    "object-paragraphs.json": squad([{"paragraphs": {}}]),
    "list-paragraph.json": squad([{"paragraphs": [[]]}]),
    "no-qas.json": squad([{"paragraphs": [{"context": "den"}]}]),
    "null-qas.json": squad([{"paragraphs": [{"context": "den", "qas": None}]}]),
    "text-qa.json": squad([{"paragraphs": [{"context": "den", "qas": ["x"]}]}]),
    "null-context.json": squad([{"paragraphs": [{"context": None, "qas": [{}]}]}]),
    "null-question.json": nested(question=None),
    "text-answers.json": nested(answers=3),
    "no-answer-text.json": nested(answers=[{"answer_start": 0}]),
    "null-answer-text.json": nested(answers=[{"text": None}]),
    "number-answers.json": nested(answers=[3]),
    "empty.csv": b"",
    "header.csv": b"id,context,question,answers\n",
    "ragged.csv": b"id,context,question,answers\n1,den\n",
    "twice.csv": b"id,id,question\n1,2,3\n",
    "quote.csv": b'id,context,question\n1,"den,Where ?\n',
    "zeros.csv": bytes(100),
    "columns.csv": b"a,b\n1,2\n",
    "ragged.tsv": b"id\tcontext\n1\t2\t3\n",
    "empty.parquet": b"",
    "text.parquet": LINES,
    "magic.parquet": b"PAR1PAR1",
    "empty.txt": b"",
    "latin.txt": b"caf\xe9",
    "blank.md": b"\n \n",
    "no-suffix": LINES,
    "other.suffix": LINES,
    "weights.safetensors": bytes(64),
    "日本語.jsonl": b"{",
    "[bold].jsonl": b"{",
    "with space.jsonl": b"{",
}


def commands(path: str) -> list[tuple[str, ...]]:
    """All commands that read a data file."""
    return [
        ("eval", "plain", "-d", path, *EVAL),
        ("calibrate", "plain", "-d", path, "-o", "out"),
        ("bench", "plain", "-d", path, *BENCH),
        ("eval", "plain", "-d", "q.jsonl", *EVAL, "--shots", "1", "--shots-from", path),
        ("eval", "bert-qa", "-d", path, *EVAL),
    ]


def wrong() -> Iterator[Case]:
    """Every wrong file with every command."""
    for name, content in WRONG.items():
        path = f"bad {name}"
        for command in commands(path):
            yield Case(command, (path,), True, written(path, content))


TEMPLATES = (
    *(b"", b" \n", b"\xff", b"no field", b"{context", b"{nothing} {context}", b"{context[0]}", b"{context.x}", b"{0}"),
    *(b"{context!r:>9999999999999}", b"{answer}", b"{question} {answer} {answer}", b"{__class__}"),
)


def templates() -> Iterator[Case]:
    """Prompt templates that cannot be filled in."""
    for number, text in enumerate(TEMPLATES):
        path = f"bad{number}.txt"
        command = ("eval", "plain", "-d", "q.jsonl", *EVAL, "--prompt-template", path)
        yield Case(command, (path, "--prompt-template"), True, written(path, text))


def parquet() -> bytes:
    """The good records."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), sink)
    return sink.getvalue().to_pybytes()


def damaged(chance: random.Random, count: int) -> Iterator[Case]:
    """Good files with damaged bytes or other values in them; some of that does no harm."""
    good = {"jsonl": LINES, "json": nested(), "csv": b"id,context,question,answers\n1,den,Where ?,den\n"}
    good["parquet"] = parquet()
    for number in range(count):
        ending = chance.choice(list(good))
        if ending == "jsonl" and chance.random() < 0.6:
            data = lines(FIRST, mutated_json(chance, RECORDS[1]), json.dumps(RECORDS[2]))
        elif ending == "json" and chance.random() < 0.6:
            data = mutated_json(chance, json.loads(good["json"])).encode("utf-8", "surrogatepass")
        else:
            data = mutated(chance, good[ending], [LINES])
        path = f"bad{number}.{ending}"
        yield Case(chance.choice(commands(path)), (path,), False, written(path, data))


def written(name: str, content: bytes) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make
