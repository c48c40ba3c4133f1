"""Models that see or hear are patched and proven; what reads questions refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from command_line import Sparsify, refused
from families.every import EVERY


@pytest.fixture(params=["vit", "whisper"])
def recipe(request: pytest.FixtureRequest, sparsify: Sparsify, work: Path) -> str:
    EVERY[request.param].build().save_pretrained(work / request.param)
    done = sparsify("patch", request.param, "--k", "4", "--ffn", "top-k")
    assert done.code == 0
    assert "keeping all equals the dense model" in done.out
    assert ("next:" in done.out) == (request.param == "whisper")
    return "sparsified"


def test_a_recipe_is_valid_and_cannot_be_calibrated_evaluated_or_timed(sparsify: Sparsify, recipe: str) -> None:
    assert sparsify("validate", recipe).code == 0
    for command in ("calibrate", "eval"):
        refused(sparsify(command, recipe, "--dataset", "q.jsonl"), 2, "answers need a model for causal-lm")
    refused(sparsify("bench", recipe), 2, "does not read text alone")
    refused(sparsify("generate", recipe, "hello"), 2, "it does not generate text")


def test_a_check_that_says_nothing_of_a_model_says_why(sparsify: Sparsify, work: Path) -> None:
    config = EVERY["wav2vec2"].build().config
    config.feat_extract_norm = "group"  # over the whole sound, its padding included
    transformers.Wav2Vec2ForCTC(config).save_pretrained(work / "sound")
    done = sparsify("patch", "sound", "--k", "4")
    assert done.code == 0
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "- padding and batching do not matter: not checked, the dense model itself heeds padding" in rows
