"""From what is asked to the text that a generating model gets, and from what it writes back to an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError, UsageError

CHAT, COMPLETION, T5, UNIFIEDQA = "chat-template", "completion", "t5", "unifiedqa"
STYLES = (CHAT, COMPLETION, T5, UNIFIEDQA)

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
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Turn:
    """What a model is told about one item, and the words that its answer follows (lead) and is followed by (close).

    A chat model gets the text as a user's turn and opens its own turn with the lead.
    """

    text: str
    lead: str = ""
    close: str = ""

    def answered(self, answer: str) -> str:
        """The answer between lead and close."""
        return f"{self.lead}{self.gap}{answer}{self.close}".lstrip()

    @property
    def gap(self) -> str:
        """What stands before the answer: a space, but nothing behind an opening quote."""
        return "" if self.lead and self.lead[-1] in QUOTES else " "


Shot = tuple[Turn, str]  # an example and its answer


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


def build_prompt(turn: Turn, style: str, tokenizer: Any, shots: Sequence[Shot] = ()) -> Prompt:
    """The prompt for one item, after answered examples. Raises UsageError for an unknown style."""
    if style == CHAT:
        return Prompt(_chat(turn, shots, tokenizer), style, add_special_tokens=False)
    if style not in STYLES:
        raise _unknown_style(style)
    examples = [_example(shot, answer, style) for shot, answer in shots]
    asked = f"{turn.text}\n{turn.lead}" if turn.lead else turn.text
    return Prompt("\n\n".join([*examples, asked]), style, add_special_tokens=True)


def read_template(path: Path) -> str:
    """The prompt template in a file: plain text with names in braces, such as {context} and {question}.

    DataError if it cannot be read, is blank or has no name in braces, so that all items would be asked the same.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the prompt template {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not text.strip():
        raise DataError(f"the prompt template {path} is blank")
    if set(PLACEHOLDER.findall(text)) <= {"answer"}:
        raise DataError(f"the prompt template {path} asks all items the same: it has no name such as {{question}}")
    return text.rstrip("\n")


def turn_from_template(template: str, fields: dict[str, str]) -> Turn:
    """The turn that a template makes of an item's fields. Nothing in a template is executed.

    {answer} marks where the answer stands: what precedes it in its line is the lead, what follows it the close.
    Without it the answer follows the whole text. UsageError for a name that the item does not have.
    """
    before, mark, close = template.partition("{answer}")
    if "{answer}" in close:
        raise UsageError("--prompt-template: {answer} stands there twice; a prompt has one place for its answer")
    text, newline, lead = before.rpartition("\n") if mark else (before, "", "")
    if mark and not newline:
        text, lead = before, ""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            names = ", ".join(f"{{{name}}}" for name in [*fields, "answer"])
            raise UsageError(f"--prompt-template: there is no {match[0]} here; the names are {names}")
        return fields[match[1]]

    text, lead, close = (PLACEHOLDER.sub(value, part) for part in (text, lead, close))
    return Turn(text.rstrip(), lead.rstrip(), close)


def extract_answer(text: str, style: str, *, version_2: bool = False) -> str:
    """The answer in what a model wrote; "" if it wrote nothing or, with `version_2`, that there is no answer.

    A seq2seq model's text is the answer. Of a causal model's text it is the first line that holds anything, after
    what stands in a think block, without a leading "Answer:" and without quotes around the whole line; of a chat
    model's it ends where that line closes a quote. A final full stop stays: the metrics ignore it, and it may belong
    to the answer.
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


def _chat(turn: Turn, shots: Sequence[Shot], tokenizer: Any) -> str:
    template: str = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = STOPPED_CLOCK + template
    messages = []
    for shot, answer in shots:
        messages.append({"role": "user", "content": shot.text})
        messages.append({"role": "assistant", "content": shot.answered(answer)})
    text: str = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": turn.text}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # asks a model that can think aloud to answer at once; other templates ignore it
    )
    return text + turn.lead


def _example(shot: Turn, answer: str, style: str) -> str:
    # A model that continues a text continues its last line: there the answers of the examples stand, too.
    between = " " if style == COMPLETION and not shot.lead else "\n"
    return f"{shot.text}{between}{shot.answered(answer)}"


def _unquoted(text: str) -> str:
    if len(text) >= 2 and QUOTES.get(text[0]) == text[-1]:
        return text[1:-1].strip()
    return text


def _unknown_style(style: str) -> UsageError:
    return UsageError(f"unknown prompt style {style}; the styles are {', '.join(STYLES)}")
