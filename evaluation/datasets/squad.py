"""SQuAD v1.1 and v2: questions on a passage, answered with words from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...errors import DataError
from ..fields import encodable, field, kind_of, optional_text, text_of
from ..items import ItemSet, Question, make_item_set
from ..prompts import CHAT, COMPLETION, UNIFIEDQA, Turn
from .base import ANSWERS, Dataset

INSTRUCTION = "Answer the question with a short span of words copied from the passage. Reply with the answer only."
# The assistant's turn starts with these words. Left to start it themselves, small chat models explain instead of
# answering: SmolLM2-135M-Instruct went from 8 to 22 F1 on 40 SQuAD questions.
ANSWER_OPENING = 'The answer is "'
NO_ANSWER_INSTRUCTION = 'If the passage does not answer the question, reply "unanswerable".'


def prompt(question: Question, style: str) -> Turn:
    """Passage and question. The seq2seq styles carry no instruction: those models know the one format that they were
    trained on."""
    return _prompt(question, style, "")


def prompt_v2(question: Question, style: str) -> Turn:
    """The same; the model may say that the passage holds no answer."""
    return _prompt(question, style, NO_ANSWER_INSTRUCTION)


def _prompt(question: Question, style: str, way_out: str) -> Turn:
    if style == CHAT:
        instruction = f"{INSTRUCTION} {way_out}".rstrip()
        text = f"{instruction}\n\nPassage: {question.context}\n\nQuestion: {question.question}"
        return Turn(text, ANSWER_OPENING, '"')
    if style == COMPLETION:
        opening = f"{INSTRUCTION} {way_out}\n" if way_out else ""
        return Turn(f"{opening}Passage: {question.context}\nQuestion: {question.question}", "Answer:")
    if style == UNIFIEDQA:
        return Turn(rf"{question.question} \n {question.context}".lower())
    return Turn(f"question: {question.question} context: {question.context}")


def read(record: Any, where: str, default_id: str = "") -> Question:
    """A flat record, as the Hub has them."""
    return Question(
        id=text_of(record, "id", where, blank=False),
        context=text_of(record, "context", where, blank=False),
        question=text_of(record, "question", where),
        answers=answers_of(record, where),
        title=optional_text(record, "title", where),
        kind=optional_text(record, "kind", where),
    )


def answers_of(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """The distinct gold answers in order; none if the record says that there is no answer."""
    impossible = record.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise DataError(f"{where}: field 'is_impossible' must be true or false, not {kind_of(impossible)}")
    if impossible:
        return ()
    answers, name = field(record, "answers", where), "answers"
    if isinstance(answers, dict):
        answers, name = field(answers, "text", f"{where}: answers"), "answers.text"
    if not isinstance(answers, list):
        raise DataError(f"{where}: field '{name}' must be a list of strings, not {kind_of(answers)}")
    texts = [_answer_text(answer, f"{where}: {name}[{index}]") for index, answer in enumerate(answers)]
    return tuple(dict.fromkeys(texts))


def _answer_text(answer: Any, where: str) -> str:
    if isinstance(answer, dict):
        answer = field(answer, "text", where)
    if not isinstance(answer, str):
        raise DataError(f"{where} must be a string, not {kind_of(answer)}")
    if not answer.strip():
        raise DataError(f"{where} is blank; a question without an answer has an empty list")
    return encodable(answer, where)


SQUAD = Dataset(
    name="squad",
    summary="SQuAD v1.1: the answer is a span of the passage",
    task=ANSWERS,
    metric="f1",
    read=read,
    prompt=prompt,
    fields=frozenset({"context", "question", "answers"}),
    hub="rajpurkar/squad",
)
SQUAD_V2 = Dataset(
    name="squad_v2",
    summary="SQuAD v2: some passages do not answer their question",
    task=ANSWERS,
    metric="f1",
    read=read,
    prompt=prompt_v2,
    hub="rajpurkar/squad_v2",
    version_2=True,
)


def make_question_set(name: str, split: str, questions: Iterable[Question]) -> ItemSet:
    """A set of questions: SQuAD v2 if any of them has no answer, which picks prompt and metric, else v1.1."""
    everything = tuple(questions)
    version_2 = any(not question.answers for question in everything)
    return make_item_set(name, split, everything, SQUAD_V2 if version_2 else SQUAD)
