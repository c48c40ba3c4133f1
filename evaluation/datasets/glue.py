"""GLUE: sentences and pairs of sentences with a label.

Questions and words are those that lm-evaluation-harness uses, so that scores can be compared. The metric is accuracy,
which is a mean over items as the verdict needs it; GLUE itself scores CoLA by Matthews correlation, which is none.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..items import Labelled
from ..prompts import Turn
from .base import LABELS, Dataset
from .classification import prompt_for, read

HUB = "nyu-mll/glue"


def _dataset(
    name: str,
    summary: str,
    fields: tuple[str, ...],
    labels: tuple[str, ...],
    words: tuple[str, ...],
    question: str,
    passage: str = "{text}",
    validation: str = "validation",
) -> Dataset:
    return Dataset(
        name=name,
        summary=summary,
        task=LABELS,
        metric="accuracy",
        read=partial(read, fields=fields, labels=labels),
        prompt=prompt_for(passage, question, words),
        hub=HUB,
        config=name,
        validation=validation,
        labels=labels,
        words=words,
    )


SST2 = _dataset(
    "sst2",
    "is what a film review says negative or positive",
    ("sentence",),
    ("negative", "positive"),
    ("negative", "positive"),
    "Is this sentence positive or negative?",
)
COLA = _dataset(
    "cola",
    "is a sentence grammatical English",
    ("sentence",),
    ("unacceptable", "acceptable"),
    ("no", "yes"),
    "Does this sentence make sense?",
)
MRPC = _dataset(
    "mrpc",
    "do two sentences from the news mean the same",
    ("sentence1", "sentence2"),
    ("not_equivalent", "equivalent"),
    ("no", "yes"),
    "Do both sentences mean the same thing?",
    "Sentence 1: {text}\nSentence 2: {text2}",
)
QQP = _dataset(
    "qqp",
    "do two questions ask the same",
    ("question1", "question2"),
    ("not_duplicate", "duplicate"),
    ("no", "yes"),
    "Do both questions ask the same thing?",
    "Question 1: {text}\nQuestion 2: {text2}",
)
QNLI = _dataset(
    "qnli",
    "does a sentence answer a question",
    ("question", "sentence"),
    ("entailment", "not_entailment"),
    ("yes", "no"),
    "Does this response answer the question?",
    "{text}\n{text2}",
)
RTE = _dataset(
    "rte",
    "does a second sentence follow from the first",
    ("sentence1", "sentence2"),
    ("entailment", "not_entailment"),
    ("True", "False"),
    "{text2} True or False?",
)
WNLI = _dataset(
    "wnli",
    "does a sentence with its pronoun filled in follow from the first",
    ("sentence1", "sentence2"),
    ("not_entailment", "entailment"),
    ("False", "True"),
    "{text2} True or False?",
)
_MNLI = _dataset(
    "mnli",
    "does a hypothesis follow from a premise, contradict it, or neither (matched part)",
    ("premise", "hypothesis"),
    ("entailment", "neutral", "contradiction"),
    ("True", "Neither", "False"),
    "{text2} True, False or Neither?",
    validation="validation_matched",
)


def _prompt_mnli(item: Labelled, style: str) -> Turn:
    """The hypothesis ends with a full stop: the question goes on behind it."""
    premise, hypothesis = item.texts[0], item.texts[1].strip()
    ended = hypothesis if hypothesis.endswith(".") else f"{hypothesis}."
    return _MNLI.prompt(replace(item, texts=(premise, ended)), style)


MNLI = replace(_MNLI, prompt=_prompt_mnli)

GLUE = (SST2, COLA, MRPC, QQP, QNLI, RTE, WNLI, MNLI)
