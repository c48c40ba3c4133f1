"""`sparsify tune`: what is refused before anything is tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Sparsify, contents, refused


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("tune llama -d q.jsonl", 2, "the file q.jsonl has none: name other data with --calibrate-on"),
        ("tune llama --goal speed", 2, "--goal must be kept, v-rows or latency"),
        ("tune llama --attention clustered", 2, "--attention must be top-k, top-theta or none here"),
        ("tune llama --attention none", 2, "leaves nothing to tune"),
        ("tune llama --attention none --ffn top-k --compensation none", 2, "--compensation goes with"),
        ("tune llama --goal v-rows --ffn top-k", 2, "--goal v-rows is about attention alone"),
        ("tune llama --goal latency --attention top-theta", 2, "use --attention top-k, or tune for kept or v-rows"),
        ("tune llama --keep 0.5,x", 2, "--keep takes fractions such as"),
        ("tune llama --keep 1.5", 2, "--keep takes fractions above 0"),
        ("tune llama --samples 0", 2, "--samples must be at least 1"),
        ("tune llama --max-drop 0", 2, "--max-drop must be above 0"),
        ("tune nowhere -d q.jsonl --calibrate-on train.jsonl", 1, "nowhere"),
    ],
)
def test_wrong_input(arguments: str, code: int, sentence: str, sparsify: Sparsify, work: Path) -> None:
    before = contents(work)
    refused(sparsify(*arguments.split()), code, sentence)
    assert contents(work) == before


def test_a_recipe_is_no_model_to_tune(sparsify: Sparsify, recipe: Path) -> None:
    refused(sparsify("tune", "sparsified", "-d", "q.jsonl", "--calibrate-on", "train.jsonl"), 2, "is a recipe")
