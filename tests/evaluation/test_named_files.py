"""NAME=FILE: a file read as a named data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.items import Labelled, Question
from hf_sparsify.evaluation.sources import load_items

RECORDS: list[dict[str, Any]] = [
    {"id": "h1", "context": "The kiln holds six bowls.", "question": "How many bowls?", "answers": {"text": ["six"]}},
    {"id": "h2", "context": "Zoë paints boats green.", "question": "Who paints?", "answers": {"text": ["Zoë"]}},
]
QUESTIONS = (
    Question("h1", "The kiln holds six bowls.", "How many bowls?", ("six",)),
    Question("h2", "Zoë paints boats green.", "Who paints?", ("Zoë",)),
)


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_file_read_as_a_named_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "films.jsonl", [{"sentence": "Fine.", "label": "positive"}])
    loaded = load_items("sst2=films.jsonl")
    assert (loaded.name, loaded.split, loaded.dataset.name) == ("sst2=films.jsonl", "", "sst2")
    assert loaded.items == (Labelled("0", ("Fine.",), 1),)
    assert load_items("films.jsonl").dataset.labels == ("positive",)
    write_lines(tmp_path / "all.jsonl", RECORDS)
    assert load_items("squad_v2=all.jsonl").dataset.name == "squad_v2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_items("sst2=~/films.jsonl").items == loaded.items
    with pytest.raises(UsageError, match=r"--split train cannot be used with sst2=films\.jsonl: a file has no splits"):
        load_items("sst2=films.jsonl", "train")
    with pytest.raises(DataError, match=r"^films\.jsonl: line 1: field 'premise' is missing"):
        load_items("mnli=films.jsonl")
    with pytest.raises(DataError, match=r"^no such file: none\.jsonl"):
        load_items("mnli=none.jsonl")


def test_name_before_a_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_items("sst=films.jsonl")
    assert str(caught.value) == "--dataset sst=films.jsonl: no data set is called sst; there is sst2"
    with pytest.raises(
        UsageError, match=r"no data set is called xyzzy; there is squad, squad_v2, narrativeqa, .*, text"
    ):
        load_items("xyzzy=films.jsonl")
    with pytest.raises(UsageError, match="the file is missing behind sst2="):
        load_items("sst2=")
    for path in ("run=3.jsonl", "sst2=3.jsonl"):
        write_lines(tmp_path / path, RECORDS)
        assert load_items(path).items == QUESTIONS
    with pytest.raises(DataError, match=r"no such file: \./run=4\.jsonl"):
        load_items("./run=4.jsonl")


@pytest.mark.parametrize("name", ["text", "labels"])
def test_schema_alone_is_no_data_set(name: str) -> None:
    with pytest.raises(UsageError, match=f"--dataset {name}: .*; give it as {name}=FILE"):
        load_items(name)
