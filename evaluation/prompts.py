"""From a question to the text that a generating model gets, and from what it writes back to an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..errors import UsageError
from .questions import Question

CHAT, COMPLETION, T5, UNIFIEDQA = "chat-template", "completion", "t5", "unifiedqa"
STYLES = (CHAT, COMPLETION, T5, UNIFIEDQA)

INSTRUCTION = "Answer the question with a short span of words copied from the passage. Reply with the answer only."
# The assistant's turn starts with these words. Left to start it themselves, small chat models explain instead of
# answering: SmolLM2-135M-Instruct went from 8 to 22 F1 on 40 SQuAD questions.
ANSWER_OPENING = 'The answer is "'
NO_ANSWER_INSTRUCTION = 'If the passage does not answer the question, reply "unanswerable".'

# A template that writes today's date would give another prompt tomorrow. This macro, put before such a template,
# takes the place of the clock: it writes Friday, 26 July 2024 in the format that the template asks for.
FIXED_DATE = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24",
    "%A": "Friday", "%a": "Fri", "%H": "12", "%M": "00", "%S": "00",
}  # fmt: skip
STOPPED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in FIXED_DATE.items())
    + " }}{% endmacro %}"
)

QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
# Alone, or as the verdict before an explanation. "<No Answer>" is what UnifiedQA was trained to say.
NO_ANSWER = re.compile(r"\W*unanswerable\s*(?:$|[^\w\s])|\W*no answer\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """The complete text for the tokenizer, and whether the tokenizer is still to add its special tokens."""

    text: str
    style: str
    add_special_tokens: bool


def choose_style(task: str, tokenizer: Any, model_name: str) -> str:
    """The prompt style for a model.

    Raises UsageError for a task that does not generate text.
    """
    if task == "causal-lm":
        return CHAT if getattr(tokenizer, "chat_template", None) else COMPLETION
    if task == "seq2seq-lm":
        return UNIFIEDQA if "unifiedqa" in PurePath(model_name).name.lower() else T5
    raise UsageError(f"task {task} has no prompt: only causal-lm and seq2seq-lm models generate an answer")


def build_prompt(question: Question, style: str, tokenizer: Any, *, version_2: bool = False) -> Prompt:
    """The prompt for one question; with `version_2` the model may say that the passage holds no answer.

    The seq2seq styles carry no instruction: those models know the one format that they were trained on.
    Raises UsageError for an unknown style.
    """
    if style == CHAT:
        return Prompt(_chat(_user_turn(question, version_2), tokenizer), style, add_special_tokens=False)
    if style == COMPLETION:
        opening = f"{INSTRUCTION} {NO_ANSWER_INSTRUCTION}\n" if version_2 else ""
        text = f"{opening}Passage: {question.context}\nQuestion: {question.question}\nAnswer:"
    elif style == T5:
        text = f"question: {question.question} context: {question.context}"
    elif style == UNIFIEDQA:
        text = rf"{question.question} \n {question.context}".lower()
    else:
        raise _unknown_style(style)
    return Prompt(text, style, add_special_tokens=True)


def extract_answer(text: str, style: str, *, version_2: bool = False) -> str:
    """The answer in what a model wrote; "" if it wrote nothing or, with `version_2`, that there is no answer.

    A seq2seq model's text is the answer. Of a causal model's text it is the first line that holds anything, after
    what stands in a think block, without a leading "Answer:" and without quotes around the whole line; of a chat
    model's, which continues ANSWER_OPENING, it ends where that line closes the quote. A final full stop stays: the
    metrics ignore it, and it may belong to the answer.
    Raises UsageError for an unknown style.
    """
    if style not in STYLES:
        raise _unknown_style(style)
    answer = text.strip()
    if style in (CHAT, COMPLETION):
        answer = answer.rpartition("</think>")[2].strip()
        answer = re.sub(r"^answer:\s*", "", answer, flags=re.IGNORECASE)
        answer = _unquoted(answer.split("\n", 1)[0].strip())
    if style == CHAT:
        answer = re.split('["”]', answer.lstrip('"“'))[0].strip()
    if version_2 and NO_ANSWER.match(answer):
        return ""
    return answer


def _user_turn(question: Question, version_2: bool) -> str:
    instruction = f"{INSTRUCTION} {NO_ANSWER_INSTRUCTION}" if version_2 else INSTRUCTION
    return f"{instruction}\n\nPassage: {question.context}\n\nQuestion: {question.question}"


def _chat(content: str, tokenizer: Any) -> str:
    template: str = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = STOPPED_CLOCK + template
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # asks a model that can think aloud to answer at once; other templates ignore it
    )
    return text + ANSWER_OPENING


def _unquoted(text: str) -> str:
    if len(text) >= 2 and QUOTES.get(text[0]) == text[-1]:
        return text[1:-1].strip()
    return text


def _unknown_style(style: str) -> UsageError:
    return UsageError(f"unknown prompt style {style}; the styles are {', '.join(STYLES)}")
