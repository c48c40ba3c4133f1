"""Prompts and answers: exact texts for every style, with a tokenizer made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets.squad import prompt, prompt_v2
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.prompts import (
    STYLES,
    Prompt,
    Turn,
    build_prompt,
    choose_style,
    extract_answer,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
LLAMA_DATE = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}{{ date_string }}|"
)
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}quiet|{% else %}aloud|{% endif %}"

QUESTION = Question("q1", "Mira Keeps nine Bees.", "How many Bees?", ("nine",))


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "nine": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(
    question: Question, style: str, tokenizer: Any, asked: Callable[[Question, str], Turn] = prompt
) -> Prompt:
    return build_prompt(asked(question, style), style, tokenizer)


@pytest.mark.parametrize(
    ("task", "template", "model", "style"),
    [
        ("causal-lm", TEMPLATE, "some/unifiedqa-chat", "chat-template"),
        ("causal-lm", None, "gpt2", "completion"),
        ("seq2seq-lm", None, "google-t5/t5-small", "t5"),
        ("seq2seq-lm", TEMPLATE, "google-t5/t5-small", "t5"),
        ("seq2seq-lm", None, "allenai/UnifiedQA-v2-t5-small", "unifiedqa"),
        ("seq2seq-lm", None, "/models/unifiedqa/t5", "t5"),
    ],
)
def test_style_follows_task_template_and_name(task: str, template: str | None, model: str, style: str) -> None:
    assert choose_style(task, make_tokenizer(template), model) == style


def test_task_that_does_not_generate_is_refused() -> None:
    with pytest.raises(UsageError, match="question-answering"):
        choose_style("question-answering", make_tokenizer(), "bert")


def test_chat_prompt() -> None:
    assert prompt_of(QUESTION, "chat-template", make_tokenizer(TEMPLATE)) == Prompt(
        "<s>[user]Answer the question with a short span of words copied from the passage. Reply with the answer only."
        "\n\nPassage: Mira Keeps nine Bees.\n\nQuestion: How many Bees?[end][assistant]"
        'The answer is "',
        "chat-template",
        add_special_tokens=False,
    )


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("completion", "Passage: Mira Keeps nine Bees.\nQuestion: How many Bees?\nAnswer:"),
        ("t5", "question: How many Bees? context: Mira Keeps nine Bees."),
        ("unifiedqa", "how many bees? \\n mira keeps nine bees."),
    ],
)
def test_prompts_without_a_template(style: str, text: str) -> None:
    assert prompt_of(QUESTION, style, make_tokenizer()) == Prompt(text, style, add_special_tokens=True)


@pytest.mark.parametrize("style", ["chat-template", "completion"])
def test_version_2_adds_the_way_out(style: str) -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    assert "unanswerable" not in prompt_of(QUESTION, style, tokenizer).text
    text = prompt_of(QUESTION, style, tokenizer, prompt_v2).text
    assert 'reply "unanswerable"' in text
    assert "Mira Keeps nine Bees." in text


@pytest.mark.parametrize("style", ["t5", "unifiedqa"])
def test_seq2seq_prompts_are_the_trained_ones_in_version_2_too(style: str) -> None:
    tokenizer = make_tokenizer()
    assert prompt_of(QUESTION, style, tokenizer, prompt_v2) == prompt_of(QUESTION, style, tokenizer)


@pytest.mark.parametrize(
    ("clock", "date"),
    [
        (LLAMA_DATE, "26 Jul 2024|"),
        ("{{ strftime_now('%A, %d %B %Y') }}|", "Friday, 26 July 2024|"),
        ("{% for i in range(1) %}{{ strftime_now('%Y-%m-%d') | trim }}|{% endfor %}", "2024-07-26|"),
    ],
)
def test_chat_prompt_is_the_same_on_every_day(clock: str, date: str) -> None:
    text = prompt_of(QUESTION, "chat-template", make_tokenizer(clock + TEMPLATE)).text
    assert text == date + prompt_of(QUESTION, "chat-template", make_tokenizer(TEMPLATE)).text


def test_chat_prompt_asks_not_to_think_aloud() -> None:
    assert prompt_of(QUESTION, "chat-template", make_tokenizer(SWITCH + TEMPLATE)).text.startswith("quiet|")


def test_unknown_style_is_refused() -> None:
    with pytest.raises(UsageError, match="haiku"):
        prompt_of(QUESTION, "haiku", make_tokenizer())
    with pytest.raises(UsageError, match="haiku"):
        extract_answer("x", "haiku")


@pytest.mark.parametrize("style", ["chat-template", "completion"])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" nine bees\nQuestion: What else?", "nine bees"),
        ("\n\n  nine  \n", "nine"),
        ("Answer: nine", "nine"),
        ("answer:\n nine", "nine"),
        ('"nine"', "nine"),
        ("“nine bees”", "nine bees"),
        ("'tis nine", "'tis nine"),
        ("Nine bees.", "Nine bees."),
        ("U.S.", "U.S."),
        ("<think>\nten?\n</think>\n\nnine", "nine"),
        ("unanswerable", "unanswerable"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_answer_of_a_causal_model(text: str, answer: str, style: str) -> None:
    assert extract_answer(text, style) == answer


@pytest.mark.parametrize(
    ("text", "chat", "completion"),
    [
        ('nine". It keeps nine bees.', "nine", 'nine". It keeps nine bees.'),
        ("nine bees”, says the passage", "nine bees", "nine bees”, says the passage"),
        ('"nine" and "ten"', "nine", 'nine" and "ten'),
        ('the "nine" bees', "the", 'the "nine" bees'),
        ('"', "", '"'),
    ],
)
def test_chat_answer_ends_where_its_quote_closes(text: str, chat: str, completion: str) -> None:
    assert extract_answer(text, "chat-template") == chat
    assert extract_answer(text, "completion") == completion


@pytest.mark.parametrize("style", ["t5", "unifiedqa"])
def test_answer_of_a_seq2seq_model_is_its_text(style: str) -> None:
    assert extract_answer(' "Answer: nine" ', style) == '"Answer: nine"'


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("unanswerable", ""),
        ("Unanswerable.", ""),
        ("**Unanswerable**", ""),
        ("unanswerable: the passage is about bees", ""),
        ("<No Answer>", ""),
        ("no answer", ""),
        ("unanswerable questions", "unanswerable questions"),
        ("no answer key", "no answer key"),
        ("nine", "nine"),
    ],
)
def test_no_answer_in_version_2(text: str, answer: str, style: str) -> None:
    assert extract_answer(text, style, version_2=True) == answer


EXAMPLE = Question("q2", "Ben owns two Kites.", "How many Kites?", ("two", "2"))


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (
            "completion",
            "Passage: Ben owns two Kites.\nQuestion: How many Kites?\nAnswer: two\n\n"
            "Passage: Mira Keeps nine Bees.\nQuestion: How many Bees?\nAnswer:",
        ),
        (
            "t5",
            "question: How many Kites? context: Ben owns two Kites.\ntwo\n\n"
            "question: How many Bees? context: Mira Keeps nine Bees.",
        ),
        (
            "unifiedqa",
            "how many kites? \\n ben owns two kites.\ntwo\n\nhow many bees? \\n mira keeps nine bees.",
        ),
    ],
)
def test_shots_stand_before_what_is_asked(style: str, text: str) -> None:
    shots = [(prompt(EXAMPLE, style), "two")]
    assert build_prompt(prompt(QUESTION, style), style, make_tokenizer(), shots).text == text


def test_shots_of_a_chat_are_turns() -> None:
    style = "chat-template"
    built = build_prompt(prompt(QUESTION, style), style, make_tokenizer(TEMPLATE), [(prompt(EXAMPLE, style), "two")])
    example = f'[user]{prompt(EXAMPLE, style).text}[end][assistant]The answer is "two"[end]'
    asked = f'[user]{prompt(QUESTION, style).text}[end][assistant]The answer is "'
    # The test's chat template writes a role as it comes, so the example's answer is a turn like every other.
    assert built == Prompt(f"<s>{example}{asked}", style, add_special_tokens=False)


def test_shot_of_a_text_to_continue_stays_on_its_line() -> None:
    shots = [(Turn("The sun is"), "hot"), (Turn("Ice is"), "cold")]
    assert build_prompt(Turn("Rain is"), "completion", None, shots).text == "The sun is hot\n\nIce is cold\n\nRain is"


@pytest.mark.parametrize(
    ("lead", "close", "answered"),
    [("", "", "nine"), ("Answer:", "", "Answer: nine"), ('It is "', '".', 'It is "nine".'), ("«", "»", "«nine»")],
)
def test_answer_between_lead_and_close(lead: str, close: str, answered: str) -> None:
    assert Turn("x", lead, close).answered("nine") == answered
