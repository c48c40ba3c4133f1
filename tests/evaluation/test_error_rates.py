"""Which normalizer goes with which model, and errors by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hf_sparsify.evaluation.error_rates import accuracy, character_errors, normalizer_for, word_errors
from transformers import WhisperTokenizer


def model(model_type: str, *, multilingual: bool | None = None) -> Any:
    generation = SimpleNamespace(is_multilingual=multilingual)
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type), generation_config=generation)


def test_normalizers() -> None:
    tokenizer = WhisperTokenizer(vocab={"a": 0}, merges=[])
    tokenizer.english_spelling_normalizer = {"colour": "color"}
    text = "The  Colour, [noise] isn't twenty-one!"
    told, normalized = normalizer_for(model("whisper", multilingual=False), tokenizer)
    assert (told, normalized(text)) == ("Whisper's English normalizer", "the color is not 21")
    told, normalized = normalizer_for(model("whisper", multilingual=True), tokenizer)
    assert (told, normalized(text)) == ("Whisper's basic normalizer", "the colour isn t twenty one")
    told, normalized = normalizer_for(model("wav2vec2"), tokenizer)
    assert (told, normalized(text)) == ("lower case, no punctuation", "the colour noise isnt twentyone")


@pytest.mark.parametrize(
    ("gold", "heard", "words", "characters"),
    [
        ("a b c", "a b c", (0, 3), (0, 5)),
        ("a b c", "", (3, 3), (5, 5)),
        ("a b", "b a x", (2, 2), (3, 3)),
        ("a", "a b c d", (3, 1), (6, 1)),
    ],
)
def test_errors(gold: str, heard: str, words: tuple[int, int], characters: tuple[int, int]) -> None:
    assert (word_errors(gold, heard), character_errors(gold, heard)) == (words, characters)


def test_accuracy_is_never_below_0() -> None:
    assert [accuracy(errors) for errors in ((0, 4), (1, 4), (6, 1))] == [1, 0.75, 0]
