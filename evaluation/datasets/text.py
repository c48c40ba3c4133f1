"""Plain text, cut into pieces that a model reads one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..fields import id_of, optional_text, text_of
from ..items import Text
from ..prompts import Turn
from .base import TEXT, Dataset, Record

PIECE_CHARACTERS = 2000
SHORTEST_PIECE = 200
# Where a piece may end, the best first: after a blank line, a line, a sentence, a word.
ENDS = tuple(re.compile(end) for end in (r"\n[^\S\n]*\n\s*", r"\n\s*", r"[.!?…][\"'”’)\]]*\s+|[。！？]", r"\s+"))


def read(record: Any, where: str, default_id: str = "") -> Text:
    """A record, or the piece of one."""
    return Text(
        id=id_of(record, ("id",), default_id, where),
        text=text_of(record, "text", where, blank=False),
        document=optional_text(record, "document", where),
        kind=optional_text(record, "kind", where),
    )


def prompt(item: Text, style: str) -> Turn:
    """Nothing is asked about a text."""
    return Turn(item.text)


def pieces_of(text: str) -> list[str]:
    """The text in pieces of at most PIECE_CHARACTERS; a last one that would be very short is part of the one before.

    Together they are the whole text, except that none is blank.
    """
    pieces: list[str] = []
    start = 0
    while start < len(text):
        end = _end_of_piece(text, start)
        pieces.append(text[start:end])
        start = end
    if len(pieces) > 1 and len(pieces[-1].strip()) < SHORTEST_PIECE:
        pieces[-2:] = ["".join(pieces[-2:])]
    return [piece for piece in pieces if piece.strip()]


def _end_of_piece(text: str, start: int) -> int:
    window = text[start : start + PIECE_CHARACTERS]
    if start + len(window) == len(text):
        return len(text)
    for end in ENDS:
        last = max((match.end() for match in end.finditer(window)), default=0)
        if last >= SHORTEST_PIECE:
            return start + last
    return start + len(window)


def _cut(dataset: Dataset, records: Iterable[Record], called: str) -> tuple[Dataset, Iterable[Record]]:
    return dataset, _piece_records(records, called)


def _piece_records(records: Iterable[Record], called: str) -> Iterator[Record]:
    """The pieces of every record, whose document is the record. Blank records are left out."""
    for number, (where, record) in enumerate(records):
        place = f"{called}: {where}"
        text = text_of(record, "text", place)
        name = id_of(record, ("id",), str(number), place)
        shared = {"document": name, **{key: record[key] for key in ("document", "kind") if key in record}}
        pieces = pieces_of(text)
        for index, piece in enumerate(pieces, start=1):
            yield where, {"id": f"{name}-{index}" if len(pieces) > 1 else name, "text": piece, **shared}


def _join_lines(dataset: Dataset, records: Iterable[Record], called: str) -> tuple[Dataset, Iterable[Record]]:
    """WikiText's rows are the lines of one long text."""
    lines = [text_of(record, "text", f"{called}: {where}").rstrip("\n") for where, record in records]
    whole = {"id": "wikitext", "text": "\n".join(lines), "document": ""}
    return dataset, _piece_records([("the text", whole)], called)


PLAIN_TEXT = Dataset(
    name="text",
    summary="any plain text: a .txt or .md file, or records with a text",
    task=TEXT,
    metric="top1_agreement",
    read=read,
    prompt=prompt,
    fields=frozenset({"text"}),
    prepare=_cut,
)
WIKITEXT = Dataset(
    name="wikitext",
    summary="WikiText-2: articles of Wikipedia, as they are written",
    task=TEXT,
    metric="top1_agreement",
    read=read,
    prompt=prompt,
    hub="Salesforce/wikitext",
    config="wikitext-2-raw-v1",
    prepare=_join_lines,
)
