"""ARC, OpenBookQA and CommonsenseQA: questions without a passage whose right choice is named by its letter."""

from __future__ import annotations

from typing import Any

from ..fields import id_of, optional_text, text_of
from ..items import Choice
from ..prompts import CHAT, COMPLETION, Turn
from .base import CHOICES, Dataset
from .choices import LEAD, keyed_choices, listed


def read(record: Any, where: str, default_id: str = "") -> Choice:
    """A record of ARC or CommonsenseQA."""
    return _read(record, where, default_id, "question")


def read_stem(record: Any, where: str, default_id: str = "") -> Choice:
    """A record of OpenBookQA, where the question is often the beginning of a sentence."""
    return _read(record, where, default_id, "question_stem")


def _read(record: Any, where: str, default_id: str, name: str) -> Choice:
    question = text_of(record, name, where, blank=False)
    choices, label = keyed_choices(record, where)
    kind = optional_text(record, "kind", where)
    return Choice(id_of(record, ("id",), default_id, where), question, choices, label, kind=kind)


def prompt(item: Choice, style: str) -> Turn:
    """The question; decoders do not see the choices. Shown a list, small chat models favour what stands first:
    SmolLM2-135M-Instruct chose 2 of 6 easy ones right with it and 5 of 6 without."""
    if style in (CHAT, COMPLETION):
        return Turn(f"Question: {item.question}", LEAD)
    return listed(item.question, item.choices, style)


def prompt_stem(item: Choice, style: str) -> Turn:
    """The beginning of a sentence, continued as it stands."""
    return Turn(item.question) if style == COMPLETION else prompt(item, style)


FIELDS = frozenset({"question", "choices", "answerKey"})

ARC_EASY = Dataset(
    name="arc_easy",
    summary="grade-school science questions that simple methods answer",
    task=CHOICES,
    metric="accuracy_norm",
    read=read,
    prompt=prompt,
    fields=FIELDS,
    hub="allenai/ai2_arc",
    config="ARC-Easy",
)
ARC_CHALLENGE = Dataset(
    name="arc_challenge",
    summary="grade-school science questions that simple methods get wrong",
    task=CHOICES,
    metric="accuracy_norm",
    read=read,
    prompt=prompt,
    fields=FIELDS,
    hub="allenai/ai2_arc",
    config="ARC-Challenge",
)
OPENBOOKQA = Dataset(
    name="openbookqa",
    summary="elementary science questions that take a fact and common knowledge",
    task=CHOICES,
    metric="accuracy_norm",
    read=read_stem,
    prompt=prompt_stem,
    fields=frozenset({"question_stem", "choices", "answerKey"}),
    hub="allenai/openbookqa",
    config="main",
)
COMMONSENSE_QA = Dataset(
    name="commonsense_qa",
    summary="questions on common sense, five choices each",
    task=CHOICES,
    metric="accuracy",
    read=read,
    prompt=prompt,
    fields=FIELDS | {"question_concept"},
    hub="tau/commonsense_qa",
)
