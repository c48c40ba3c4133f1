"""Questions with their passages and gold answers, as every part of the evaluation sees them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import require_at_least_one


@dataclass(frozen=True)
class Question:
    """One question about one passage; no gold answers means that the passage does not answer it (SQuAD v2)."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    title: str = ""
    kind: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one data set split, with a fingerprint of all of them, sampled or not.

    `name` is what the person typed and `split` is "" for a file. `version_2` says whether the data set as a whole
    has questions without an answer: it picks prompt and metric, so a sample keeps it.
    """

    name: str
    split: str
    questions: tuple[Question, ...]
    fingerprint: str
    version_2: bool

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, limit: int | None, seed: int) -> QuestionSet:
        """A random subset of `limit` questions in their original order; everything if there are no more than that.

        Raises UsageError for a limit below 1.
        """
        require_at_least_one(limit=limit)
        if limit is None or limit >= len(self.questions):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.questions)), limit))
        return replace(self, questions=tuple(self.questions[index] for index in chosen))


def make_question_set(name: str, split: str, questions: Iterable[Question]) -> QuestionSet:
    """A question set with its fingerprint and version worked out."""
    everything = tuple(questions)
    version_2 = any(not question.answers for question in everything)
    return QuestionSet(name, split, everything, fingerprint(everything), version_2)


def fingerprint(questions: Iterable[Question]) -> str:
    """SHA-256, in hex, over what is asked and scored: id, passage, question and gold answers, in order.

    Titles and kinds do not count, so the same questions have the same fingerprint in every file format.
    """
    digest = hashlib.sha256()
    for question in questions:
        content = [question.id, question.context, question.question, list(question.answers)]
        digest.update(json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n")
    return digest.hexdigest()
