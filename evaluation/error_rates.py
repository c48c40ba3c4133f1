"""Words and characters that were heard wrong, by jiwer, after what ASR scoring does to texts first."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

Normalizer = Callable[[str], str]


def normalizer_for(model: Any, tokenizer: Any) -> tuple[str, Normalizer]:
    """What is done to both texts before they are compared, in words and as a function.

    Whisper's own normalizers for Whisper (Radford et al. 2022, arXiv 2212.04356, appendix C): the English one where the
    model knows English alone, else the basic one. For all others lower case and no punctuation, so that "don't" is one
    word.
    """
    if model.config.model_type == "whisper":
        english = getattr(model.generation_config, "is_multilingual", None) is False
        spelling = getattr(tokenizer, "english_spelling_normalizer", None)
        if english and spelling:
            return "Whisper's English normalizer", tokenizer.normalize
        return "Whisper's basic normalizer", lambda text: " ".join(tokenizer.basic_normalize(text).split())
    import jiwer

    plain = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
    return "lower case, no punctuation", lambda text: str(plain(text))


@lru_cache(maxsize=100_000)
def word_errors(gold: str, heard: str) -> tuple[int, int]:
    """Substituted, deleted and inserted words, and the words of gold; both texts normalized."""
    import jiwer

    return _counted(jiwer.process_words(gold, heard))


@lru_cache(maxsize=100_000)
def character_errors(gold: str, heard: str) -> tuple[int, int]:
    """The same of characters, spaces included."""
    import jiwer

    return _counted(jiwer.process_characters(gold, heard))


def accuracy(errors: tuple[int, int]) -> float:
    """1 - error rate, and not below 0 where more was inserted than there is."""
    wrong, units = errors
    return max(0.0, 1 - wrong / units)


def _counted(made: Any) -> tuple[int, int]:
    return made.substitutions + made.deletions + made.insertions, made.substitutions + made.deletions + made.hits
