"""Prompts and answers: exact texts for every style, with a tokenizer made here."""

from __future__ import annotations

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.prompts import STYLES, Prompt, build_prompt, choose_style, extract_answer
from hf_sparsify.evaluation.questions import Question
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
    prompt = build_prompt(QUESTION, "chat-template", make_tokenizer(TEMPLATE))
    assert prompt == Prompt(
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
    assert build_prompt(QUESTION, style, make_tokenizer()) == Prompt(text, style, add_special_tokens=True)


@pytest.mark.parametrize("style", ["chat-template", "completion"])
def test_version_2_adds_the_way_out(style: str) -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    assert "unanswerable" not in build_prompt(QUESTION, style, tokenizer).text
    text = build_prompt(QUESTION, style, tokenizer, version_2=True).text
    assert 'reply "unanswerable"' in text
    assert "Mira Keeps nine Bees." in text


@pytest.mark.parametrize("style", ["t5", "unifiedqa"])
def test_seq2seq_prompts_are_the_trained_ones_in_version_2_too(style: str) -> None:
    tokenizer = make_tokenizer()
    assert build_prompt(QUESTION, style, tokenizer, version_2=True) == build_prompt(QUESTION, style, tokenizer)


@pytest.mark.parametrize(
    ("clock", "date"),
    [
        (LLAMA_DATE, "26 Jul 2024|"),
        ("{{ strftime_now('%A, %d %B %Y') }}|", "Friday, 26 July 2024|"),
        ("{% for i in range(1) %}{{ strftime_now('%Y-%m-%d') | trim }}|{% endfor %}", "2024-07-26|"),
    ],
)
def test_chat_prompt_is_the_same_on_every_day(clock: str, date: str) -> None:
    text = build_prompt(QUESTION, "chat-template", make_tokenizer(clock + TEMPLATE)).text
    assert text == date + build_prompt(QUESTION, "chat-template", make_tokenizer(TEMPLATE)).text


def test_chat_prompt_asks_not_to_think_aloud() -> None:
    assert build_prompt(QUESTION, "chat-template", make_tokenizer(SWITCH + TEMPLATE)).text.startswith("quiet|")


def test_unknown_style_is_refused() -> None:
    with pytest.raises(UsageError, match="haiku"):
        build_prompt(QUESTION, "haiku", make_tokenizer())
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
