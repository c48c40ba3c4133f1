"""Question files: SQuAD's nested JSON, and flat records as JSON Lines, JSON or Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .questions import Question

Record = tuple[str, Any]  # where it stands in its file, and what stands there


def read_questions(path: Path, name: str | None = None) -> list[Question]:
    """Every question of a file, in order; `name` is how messages call the file.

    Raises DataError, in one sentence with file and position, if the file is missing, unreadable, empty or malformed.
    """
    name = str(path) if name is None else name
    if os.path.isdir(path):
        raise DataError(f"{name} is a directory; name a {_suffix_list()} file")
    if not os.path.exists(path):
        raise DataError(f"no such file: {name}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name}: cannot tell the format from the file name; it should end in {_suffix_list()}")
    try:
        return questions_from_records(reader(path, name), name)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


def questions_from_records(records: Iterator[Record], name: str) -> list[Question]:
    """The questions of flat records, checked one by one.

    Raises DataError for a malformed record, an id that comes twice, or no record at all.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, record in records:
        question = _question(record, f"{name}: {where}")
        if question.id in seen:
            raise DataError(f"{name}: {where}: the id {question.id!r} was already used at {seen[question.id]}")
        seen[question.id] = where
        questions.append(question)
    if not questions:
        raise DataError(f"{name} holds no questions")
    return questions


def _read_json(path: Path, name: str) -> Iterator[Record]:
    text = _read_text(path, name)
    try:
        content = _parse(text, name)
    except DataError as error:
        # Data sets exported with `to_json` are JSON Lines under the suffix .json.
        if _starts_with_a_record(text) and isinstance(error.__cause__, json.JSONDecodeError):
            yield from _json_lines(text, name)
            return
        raise
    if isinstance(content, list):
        yield from ((f"[{index}]", record) for index, record in enumerate(content))
    elif isinstance(content, dict) and "data" in content:
        yield from _flatten_squad(content, name)
    elif isinstance(content, dict) and "question" in content:
        yield "record 1", content
    else:
        raise DataError(f'{name}: expected SQuAD\'s {{"data": [...]}} or a list of questions')


def _read_json_lines(path: Path, name: str) -> Iterator[Record]:
    yield from _json_lines(_read_text(path, name), name)


def _read_parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{name} is not a readable Parquet file") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _suffix_list() -> str:
    *first, last = READERS
    return f"{', '.join(first)} or {last}"


def _read_text(path: Path, name: str) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise DataError(f"{name} is empty")
    return text


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise DataError(f"{where} is not JSON: {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not usable JSON: it is nested too deeply or holds a number too long") from error


def _starts_with_a_record(text: str) -> bool:
    """Whether the first line that is not blank is a flat record of its own."""
    try:
        first = json.loads(text.lstrip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "question" in first


def _json_lines(text: str, name: str) -> Iterator[Record]:
    # Only "\n" ends a line: str.splitlines would also split at separators that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse(line, f"{name}: line {number}")


def _flatten_squad(content: dict[str, Any], name: str) -> Iterator[Record]:
    """SQuAD's articles, paragraphs and questions as flat records."""
    for a, article in enumerate(_items(content, "data", name)):
        where = f"data[{a}]"
        for p, paragraph in enumerate(_items(article, "paragraphs", f"{name}: {where}")):
            inner = f"{where}.paragraphs[{p}]"
            shared = {"title": article.get("title"), "context": _field(paragraph, "context", f"{name}: {inner}")}
            for q, qa in enumerate(_items(paragraph, "qas", f"{name}: {inner}")):
                record = {**shared, **qa} if isinstance(qa, dict) else qa
                yield f"{inner}.qas[{q}]", record


def _question(record: Any, where: str) -> Question:
    return Question(
        id=_text(record, "id", where, blank=False),
        context=_text(record, "context", where, blank=False),
        question=_text(record, "question", where),
        answers=_answers(record, where),
        title=_optional_text(record, "title", where),
        kind=_optional_text(record, "kind", where),
    )


def _answers(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """The distinct gold answers in order; none if the record says that there is no answer."""
    impossible = record.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise DataError(f"{where}: field 'is_impossible' must be true or false, not {_kind(impossible)}")
    if impossible:
        return ()
    answers, field = _field(record, "answers", where), "answers"
    if isinstance(answers, dict):
        answers, field = _field(answers, "text", f"{where}: answers"), "answers.text"
    if not isinstance(answers, list):
        raise DataError(f"{where}: field '{field}' must be a list of strings, not {_kind(answers)}")
    texts: list[str] = []
    for index, answer in enumerate(answers):
        texts.append(_answer_text(answer, f"{where}: {field}[{index}]"))
    return tuple(dict.fromkeys(texts))


def _answer_text(answer: Any, where: str) -> str:
    if isinstance(answer, dict):
        answer = _field(answer, "text", where)
    if not isinstance(answer, str):
        raise DataError(f"{where} must be a string, not {_kind(answer)}")
    if not answer.strip():
        raise DataError(f"{where} is blank; a question without an answer has an empty list")
    return _encodable(answer, where)


def _field(holder: Any, field: str, where: str) -> Any:
    if not isinstance(holder, dict):
        raise DataError(f"{where}: expected an object, not {_kind(holder)}")
    if field not in holder:
        raise DataError(f"{where}: field '{field}' is missing")
    return holder[field]


def _items(holder: Any, field: str, where: str) -> list[Any]:
    items = _field(holder, field, where)
    if not isinstance(items, list):
        raise DataError(f"{where}: field '{field}' must be a list, not {_kind(items)}")
    return items


def _text(record: Any, field: str, where: str, *, blank: bool = True) -> str:
    text = _field(record, field, where)
    if not isinstance(text, str):
        raise DataError(f"{where}: field '{field}' must be a string, not {_kind(text)}")
    if not blank and not text.strip():
        raise DataError(f"{where}: field '{field}' is blank")
    return _encodable(text, f"{where}: field '{field}'")


def _optional_text(record: dict[str, Any], field: str, where: str) -> str:
    return "" if record.get(field) is None else _text(record, field, where)


def _encodable(text: str, where: str) -> str:
    # JSON can spell half a surrogate pair, which no tokenizer takes.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a Unicode surrogate pair") from error
    return text


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
