"""UnifiedQA's TSV files, with and without the file of answers beside them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TASKS

LINES = [
    'Who said "hm \\n Ann said "hm".\tAnn',
    r'"Up" is where? \n (A) here (B) there' + "\tthere\r",
]


def write(tmp_path: Path, lines: list[str], answers: list[list[str]] | None = None) -> str:
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    if answers is not None:
        text = "".join(json.dumps(several) + "\n" for several in answers)
        (tmp_path / "dev_ans.jsonl").write_text(text, encoding="utf-8")
    return f"unifiedqa={tmp_path / 'dev.tsv'}"


def test_quotes_are_text_and_the_first_line_is_a_question(tmp_path: Path) -> None:
    first, second = load_items(write(tmp_path, LINES)).items
    assert (first.question, first.context, first.answers) == ('Who said "hm \\n ', 'Ann said "hm".', ("Ann",))
    assert (second.question, second.context, second.answers) == (
        r'"Up" is where? \n (A) here (B) there',
        "",
        ("there",),
    )


def test_several_answers(tmp_path: Path) -> None:
    items = load_items(write(tmp_path, LINES, [["Ann", "Anna"], ["there"]])).items
    assert [item.answers for item in items] == [("Ann", "Anna"), ("there",)]
    with pytest.raises(DataError, match=r"dev_ans\.jsonl has answers for 1 lines, and .*dev\.tsv has 2"):
        load_items(write(tmp_path, LINES, [["Ann"]]))


def test_lines_without_a_pair_are_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [LINES[0], "no answer", "too\tmany\tcells", "blank\t ", LINES[1]]
    with caplog.at_level(logging.WARNING):
        items = load_items(write(tmp_path, lines, [[str(number)] for number in range(5)])).items
    assert [item.answers for item in items] == [("0",), ("4",)]
    assert caplog.messages == [f"warning: {tmp_path / 'dev.tsv'}: 3 of 5 lines hold no pair and are left out"]
    with pytest.raises(DataError, match="holds no items"):
        load_items(write(tmp_path, ["no answer"]))


def test_records_of_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps({"input": r"Who? \n Ann.", "answers": ["Ann"]}) + "\n", encoding="utf-8")
    assert load_items(f"unifiedqa={path}").items[0].context == "Ann."


def test_it_is_a_format_and_for_models_that_write() -> None:
    with pytest.raises(UsageError, match="give it as unifiedqa=FILE"):
        load_items("unifiedqa")
    assert {model for data, model in TASKS if data == "encoded questions"} == {"causal-lm", "seq2seq-lm"}
