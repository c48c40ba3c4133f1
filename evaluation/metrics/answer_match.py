"""How well a predicted answer matches the gold answers, as SQuAD's evaluation defines it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII punctuation only, as in SQuAD's own script


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces: in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str], *, version_2: bool = False) -> float:
    """1.0 if the prediction equals a gold answer after normalization, otherwise 0.0."""
    predicted = normalize_answer(prediction)
    return float(any(predicted == normalize_answer(gold) for gold in _golds(answers, version_2)))


def f1(prediction: str, answers: Sequence[str], *, version_2: bool = False) -> float:
    """The best token F1 of the prediction over the gold answers, from 0.0 to 1.0.

    Texts of which normalization leaves nothing share no token and score 0.0 in version 1.1. In version 2 such a text
    means "no answer": two of them score 1.0. A question without gold answers always follows version 2.
    """
    empty_can_match = version_2 or not answers
    predicted = normalize_answer(prediction).split()
    return max(
        _token_f1(predicted, normalize_answer(gold).split(), empty_can_match) for gold in _golds(answers, version_2)
    )


def _golds(answers: Sequence[str], version_2: bool) -> Sequence[str]:
    """What a prediction is held against: no answer, as an empty text, where there is no gold answer."""
    if version_2:
        answers = [gold for gold in answers if normalize_answer(gold)]
    return answers or [""]


def _token_f1(predicted: list[str], gold: list[str], empty_can_match: bool) -> float:
    if not predicted or not gold:
        return float(empty_can_match and predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)
