"""CSV and TSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.items import Choice, Labelled, Question, Text
from hf_sparsify.evaluation.sources import load_items


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.TSV", "\t")])
def test_texts_with_labels(tmp_path: Path, name: str, mark: str) -> None:
    rows = [("idx", " sentence", "label"), ("7", '"one, two\nthree ""four"""', "1"), ("8", "007", " 0 ")]
    text = "\r\n\r\n".join(mark.join(row) for row in rows)
    loaded = load_items(write(tmp_path, name, f"\ufeff{text}\n"))
    assert loaded.items == (Labelled("7", ('one, two\nthree "four"',), 1), Labelled("8", ("007",), 0))
    assert loaded.dataset.labels == ("0", "1")


def test_names_stay_names(tmp_path: Path) -> None:
    loaded = load_items(write(tmp_path, "a.csv", "text,label\na,no\nb,2nd\n"))
    assert loaded.dataset.labels == ("2nd", "no")


def test_answers_that_are_true_or_false(tmp_path: Path) -> None:
    loaded = load_items(write(tmp_path, "a.csv", "question,passage,answer\nis it,It is.,True\nisn't it,true,false\n"))
    assert loaded.items == (
        Choice("0", "is it", ("no", "yes"), 1, "It is."),
        Choice("1", "isn't it", ("no", "yes"), 0, "true"),
    )


def test_lists_are_json(tmp_path: Path) -> None:
    loaded = load_items(write(tmp_path, "a.csv", 'id,context,question,answers\n1,c,[q],"[""c"", ""d""]"\n'))
    assert loaded.items == (Question("1", "c", "[q]", ("c", "d")),)
    with pytest.raises(DataError, match=r"line 2: field 'answers' must be a list of strings, not a string"):
        load_items(write(tmp_path, "b.csv", "id,context,question,answers\n1,c,q,['c']\n"))


def test_long_cells(tmp_path: Path) -> None:
    text = "word " * 40_000
    before = csv.field_size_limit()
    loaded = load_items(write(tmp_path, "a.csv", f"text\n{text}\n"))
    assert "".join(item.text for item in loaded.items) == text
    assert isinstance(loaded.items[0], Text)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is empty"),
        ("text,label\n", " holds no items"),
        ("text,label\na,1\n\nb\n", ": line 4: the row has 1 cells and the first line 2"),
        ('text,label\n"a\nb",1\nb,1,2\n', ": line 4: the row has 3 cells and the first line 2"),
        ("text,text \na,1\n", ": line 1: the column 'text' is there twice; the first line names the fields"),
        ('text,label\na,1\n"b,1\n', ": line 3 is not part of a table: unexpected end of data"),
        ("text,label\na,\n", ": line 2: field 'label' is blank"),
        (
            "text,label\na,-1\n",
            ": line 2: field 'label' is -1: the label is hidden, as it is in GLUE's test splits; use another split",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "a.csv", text)
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert str(caught.value) == f"{path}{message}"


def test_number_of_many_digits(tmp_path: Path) -> None:
    loaded = load_items(write(tmp_path, "a.csv", f"text,label\na,{'9' * 5000}\n"))
    assert loaded.dataset.labels == ("9" * 5000,)
