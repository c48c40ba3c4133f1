"""Files of items: SQuAD's nested JSON, flat records as JSON Lines, JSON, CSV or Parquet, and plain text."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import DataError
from .audio_folder import METADATA_FILES, described, with_places
from .datasets import dataset_of, nearest_dataset
from .datasets.base import ANSWERS, ENCODED, Dataset, Record
from .datasets.squad import make_question_set
from .fields import field, items_of, kind_of
from .items import ItemSet, make_item_set
from .tabular import read_table

logger = logging.getLogger(__name__)


def read_items(path: Path, name: str | None = None, split: str = "", dataset: Dataset | None = None) -> ItemSet:
    """Every item of a file or audio folder, in order; `name` is how messages call it, `dataset` the schema of a file.

    Raises DataError, in one sentence with file and position, if the file is missing, unreadable, empty or malformed.
    """
    name = str(path) if name is None else name
    if os.path.isdir(path):
        inside = described(path)
        if inside is None:
            folders = f"a folder of sound with {_either(METADATA_FILES)}"
            raise DataError(f"{name} is a directory; name a {_either(READERS)} file, or {folders}")
        path = inside
    if not os.path.exists(path):
        raise DataError(f"no such file: {name}")
    reader = READERS.get(path.suffix.lower())
    if reader is _read_tsv and dataset is not None and dataset.task == ENCODED:
        reader = _read_encoded
    if reader is None:
        raise DataError(f"{name}: cannot tell the format from the file name; it should end in {_either(READERS)}")
    try:
        return items_from_records(with_places(reader(path, name), path), name, split, dataset)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


def items_from_records(
    records: Iterable[Record], name: str, split: str = "", dataset: Dataset | None = None
) -> ItemSet:
    """The items of records, checked one by one; dataset: their schema, None to go by the fields of the first.

    Raises DataError for a malformed record, an id that comes twice, or no record at all.
    """
    called = f"{name} ({split})" if split else name
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise DataError(f"{called} holds no items")
    named = dataset is not None
    if dataset is None:
        dataset = _recognised(first, called)
    records = chain([first], records)
    if dataset.prepare is not None:
        dataset, records = dataset.prepare(dataset, records, called)
    items = _read_all(records, called, dataset)
    if dataset.task == ANSWERS and not named:
        return make_question_set(name, split, items)
    return make_item_set(name, split, items, dataset)


def _recognised(first: Record, called: str) -> Dataset:
    where, record = first
    if not isinstance(record, dict):
        raise DataError(f"{called}: {where}: expected an object, not {kind_of(record)}")
    dataset = dataset_of(record) or nearest_dataset(record)
    if dataset is None:
        names = ", ".join(map(str, record)) or "none"
        raise DataError(
            f"{called}: {where}: no known data set has these fields: {names}; `sparsify datasets` lists those there "
            "are, and NAME=FILE reads a file as one of them"
        )
    return dataset


def _read_all(records: Iterable[Record], called: str, dataset: Dataset) -> list[Any]:
    items: list[Any] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(records):
        item = dataset.read(record, f"{called}: {where}", str(number))
        if item.id in seen:
            raise DataError(f"{called}: {where}: the id {item.id!r} was already used at {seen[item.id]}")
        seen[item.id] = where
        items.append(item)
    if not items:
        raise DataError(f"{called} holds no items")
    return items


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
    elif _is_record(content):
        yield "record 1", content
    else:
        raise DataError(f'{name}: expected SQuAD\'s {{"data": [...]}} or a list of records')


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


def _read_csv(path: Path, name: str) -> Iterator[Record]:
    return read_table(_read_text(path, name), name, ",")


def _read_tsv(path: Path, name: str) -> Iterator[Record]:
    return read_table(_read_text(path, name), name, "\t")


def _read_encoded(path: Path, name: str) -> Iterator[Record]:
    """UnifiedQA's TSV files: input and answer, without quotes or a first line of names. Where questions have several
    answers, a list of them is on the same line of STEM_ans.jsonl. Some of the files have lines that hold no pair."""
    lines = _read_text(path, name).rstrip("\n").split("\n")
    beside = path.with_name(f"{path.stem}_ans.jsonl")
    several = [answers for _, answers in _read_json_lines(beside, str(beside))] if beside.exists() else None
    if several is not None and len(several) < len(lines):
        raise DataError(f"{beside} has answers for {len(several)} lines, and {name} has {len(lines)}")
    left_out = 0
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) == 2 and all(cells):
            yield f"line {number + 1}", {"input": cells[0], "answers": several[number] if several else cells[1:]}
        else:
            left_out += 1
    if left_out:
        logger.warning("warning: %s: %d of %d lines hold no pair and are left out", name, left_out, len(lines))


def _read_plain_text(path: Path, name: str) -> Iterator[Record]:
    # One document: the file. Its pieces stand for themselves.
    yield "the text", {"id": "text", "text": _read_text(path, name).replace("\r\n", "\n"), "document": ""}


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_plain_text,
    ".md": _read_plain_text,
}


def _either(names: Iterable[str]) -> str:
    *first, last = names
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
    return _is_record(first)


def _is_record(content: Any) -> bool:
    return isinstance(content, dict) and bool(content)


def _json_lines(text: str, name: str) -> Iterator[Record]:
    # Only "\n" ends a line: str.splitlines would also split at separators that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse(line, f"{name}: line {number}")


def _flatten_squad(content: dict[str, Any], name: str) -> Iterator[Record]:
    """SQuAD's articles, paragraphs and questions as flat records."""
    for a, article in enumerate(items_of(content, "data", name)):
        where = f"data[{a}]"
        for p, paragraph in enumerate(items_of(article, "paragraphs", f"{name}: {where}")):
            inner = f"{where}.paragraphs[{p}]"
            shared = {"title": article.get("title"), "context": field(paragraph, "context", f"{name}: {inner}")}
            for q, qa in enumerate(items_of(paragraph, "qas", f"{name}: {inner}")):
                record = {**shared, **qa} if isinstance(qa, dict) else qa
                yield f"{inner}.qas[{q}]", record
