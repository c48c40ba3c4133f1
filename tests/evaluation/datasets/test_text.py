"""Plain text: where it is cut, and what belongs together."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.datasets.text import PIECE_CHARACTERS, SHORTEST_PIECE, pieces_of
from hf_sparsify.evaluation.formats import items_from_records
from hf_sparsify.evaluation.items import ItemSet, Text
from hypothesis import given
from hypothesis import strategies as st

SOUP = st.lists(st.sampled_from(["word", "longerword", " ", ". ", "\n", "\n\n", "。", "x" * 300]), max_size=400)


@given(SOUP)
def test_pieces_are_the_whole_text_in_order(parts: list[str]) -> None:
    text = "".join(parts)
    pieces = pieces_of(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    if len(pieces) > 1:
        assert all(SHORTEST_PIECE <= len(piece) <= PIECE_CHARACTERS for piece in pieces[:-1])
        assert len(pieces[-1].strip()) >= SHORTEST_PIECE
        assert len(pieces[-1]) < PIECE_CHARACTERS + SHORTEST_PIECE + len(pieces[-1]) - len(pieces[-1].rstrip())


@pytest.mark.parametrize(
    ("separator", "worse"),
    [("\n\n", "\n"), ("\n  \n", "\n"), ("\n", ". "), (". ", " "), ('!" ', " "), (" ", "x"), ("。", "x")],
)
def test_pieces_end_at_the_best_place(separator: str, worse: str) -> None:
    # The worse place comes later in the piece, the better one is taken all the same.
    first = "a" * 1500 + separator
    rest = "b" * 300 + worse + "c" * 1500
    assert pieces_of(first + rest) == [first, rest]


def test_a_place_too_early_is_none() -> None:
    heading, body = "Title\n\n", "word " * 800
    pieces = pieces_of(heading + body)
    assert pieces[0].startswith("Title\n\nword")
    assert len(pieces[0]) > 1900


def test_word_without_an_end_is_cut() -> None:
    assert [len(piece) for piece in pieces_of("x" * 4500)] == [2000, 2000, 500]


@pytest.mark.parametrize(("tail", "sizes"), [(199, [2199]), (200, [2000, 200])])
def test_very_short_tail_is_no_piece(tail: int, sizes: list[int]) -> None:
    assert [len(piece) for piece in pieces_of("x" * (2000 + tail))] == sizes


def test_blank_text_has_no_pieces() -> None:
    assert pieces_of("") == pieces_of(" \n" * 3000) == []


def load(*records: Any, name: str | None = None) -> ItemSet:
    dataset = DATASETS[name] if name else None
    return items_from_records([(f"row {n}", r) for n, r in enumerate(records, start=1)], "x", "", dataset)


def test_records_are_documents() -> None:
    long = "word " * 500
    loaded = load(
        {"text": "short"}, {"text": " \n"}, {"id": "b", "text": long, "kind": "news"}, {"text": "end", "id": 7}
    )
    assert loaded.dataset.name == "text"
    assert [(item.id, item.document, item.kind) for item in loaded.items] == [
        ("0", "0", ""),
        ("b-1", "b", "news"),
        ("b-2", "b", "news"),
        ("7", "7", ""),
    ]
    assert loaded.items[1].text + loaded.items[2].text == long


def test_document_of_a_record_is_kept() -> None:
    assert load({"text": "a", "document": "book"}).items == (Text("0", "a", "book"),)


def test_rows_of_wikitext_are_lines() -> None:
    rows = [" = Owls = \n", "", " Owls are birds . \n", "x" * 1990 + "\n", ""]
    loaded = load(*({"text": row} for row in rows), name="wikitext")
    assert [item.id for item in loaded.items] == ["wikitext"]
    assert loaded.items[0].text == " = Owls = \n\n Owls are birds . \n" + "x" * 1990 + "\n"
    assert loaded.items[0].group == "wikitext"
    many = load(*({"text": row} for row in rows * 3), name="wikitext")
    assert [item.group for item in many.items] == ["wikitext-1", "wikitext-2", "wikitext-3"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": " "}], "x holds no items"),
        ([{"text": "a"}, {"text": None}], "x: row 2: field 'text' must be a string, not null"),
        ([{"text": "a"}, {"words": "b"}], "x: row 2: field 'text' is missing"),
        ([{"text": "a", "document": 3}], "x: row 1: field 'document' must be a string, not a number"),
        ([{"text": "a", "id": "n"}, {"text": "b", "id": "n"}], "x: row 2: the id 'n' was already used at row 1"),
    ],
)
def test_bad_texts(records: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(*records)
    assert str(caught.value) == message


def test_nothing_is_asked_about_a_text() -> None:
    assert DATASETS["text"].prompt(Text("t", "Words."), "completion").text == "Words."
