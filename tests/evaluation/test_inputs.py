"""Questions as tensors: prompts, padding, prompts with their answers, and how much a model has room for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny_language_models
import tiny_models
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets.squad import SQUAD, SQUAD_V2
from hf_sparsify.evaluation.inputs import PromptEncoder, check_answer_fits, position_limit
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.prompts import CHAT, COMPLETION, T5
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.recipe import BaseModel

QUESTION = Question("q", "Ann is in the attic .", "Where is Ann ?", ("the attic", "attic"))
UNANSWERED = Question("u", "Ann is in the attic .", "Where is Ben ?", ())
LONGER = Question("l", "Ann is in the attic . Ben is in the barn .", "Where is Ben ?", ("barn",))


def encoder(task: str = "causal-lm", style: str = COMPLETION, version_2: bool = False) -> PromptEncoder:
    tokenizer = tiny_language_models.tokenizer(chat=style == CHAT, ends=task == "seq2seq-lm")
    tokenizer.padding_side = "left" if task == "causal-lm" else "right"
    return PromptEncoder(tokenizer, task, style, SQUAD_V2 if version_2 else SQUAD, torch.device("cpu"))


def words(tokens: torch.Tensor) -> str:
    return " ".join(tiny_language_models.WORDS[token] for token in tokens[0].tolist())


def test_the_style_follows_the_model() -> None:
    model = tiny_models.build("llama")
    plain, chat = tiny_language_models.tokenizer(), tiny_language_models.tokenizer(chat=True)

    def style(tokenizer: Any, task: str) -> str:
        loaded = LoadedModel(model, tokenizer, BaseModel("any", task, "any", "any"))
        return PromptEncoder.for_model(loaded, SQUAD).style

    assert style(plain, "causal-lm") == COMPLETION
    assert style(chat, "causal-lm") == CHAT
    assert style(plain, "seq2seq-lm") == T5
    with pytest.raises(UsageError, match="encoder"):
        style(plain, "encoder")


@pytest.mark.parametrize(("task", "style"), [("causal-lm", COMPLETION), ("causal-lm", CHAT), ("seq2seq-lm", T5)])
def test_tokens_are_those_of_the_text(task: str, style: str) -> None:
    made = encoder(task, style)
    ids = made.token_ids(QUESTION)
    assert (
        made.tokenizer.decode(ids, skip_special_tokens=True).split()
        == made.tokenizer.decode(
            made.tokenizer(made.prompt(QUESTION).text, add_special_tokens=False)["input_ids"], skip_special_tokens=True
        ).split()
    )
    assert (ids[-1] == 1) == (task == "seq2seq-lm"), "an encoder's input ends with the end token"


@pytest.mark.parametrize(("task", "left"), [("causal-lm", True), ("seq2seq-lm", False)])
def test_batches_are_padded_on_the_right_side(task: str, left: bool) -> None:
    batch = encoder(task, COMPLETION if left else T5).batch([[5, 6, 7], [8]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8] if left else [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if left else [1, 0, 0]]


@pytest.mark.parametrize("style", [COMPLETION, CHAT])
def test_a_decoder_sees_the_prompt_and_its_first_answer(style: str) -> None:
    made = encoder(style=style)
    sample = made.answered(QUESTION, None)
    prompt = made.token_ids(QUESTION)
    assert sample["input_ids"][0, : len(prompt)].tolist() == prompt
    assert words(sample["input_ids"][:, len(prompt) :]) == "the attic"
    assert bool((sample["attention_mask"] == 1).all())


def test_an_encoder_decoder_sees_the_answer_shifted_behind_its_start() -> None:
    sample = encoder("seq2seq-lm", T5).answered(QUESTION, 0)
    assert words(sample["decoder_input_ids"]) == "<pad> the attic"
    assert words(sample["input_ids"]).startswith("question : Where is Ann ?")


def test_a_question_without_an_answer_is_unanswerable() -> None:
    made = encoder(version_2=True)
    sample = made.answered(UNANSWERED, None)
    assert words(sample["input_ids"]).endswith("unanswerable")
    assert made.answers(torch.tensor([[tiny_language_models.WORDS.index("unanswerable")]])) == [""]


def test_answers_are_without_special_tokens() -> None:
    attic, the = (tiny_language_models.WORDS.index(word) for word in ("attic", "the"))
    assert encoder().answers(torch.tensor([[the, attic, 1, 0], [attic, 1, 0, 0], [1, 0, 0, 0]])) == [
        "the attic",
        "attic",
        "",
    ]


@pytest.mark.parametrize(("name", "limit"), [("llama", 64), ("gpt2", 64), ("bart", 64), ("t5", None)])
def test_positions(name: str, limit: int | None) -> None:
    model: Any = tiny_models.build(name)
    assert position_limit(model) == limit
    check_answer_fits(model, 63)
    if limit is None:
        check_answer_fits(model, 10_000)
    else:
        with pytest.raises(UsageError, match="--max-new-tokens 64 is too many: the model has 64 positions"):
            check_answer_fits(model, 64)


def test_long_prompts_are_cut_at_their_end() -> None:
    made = replace(encoder("seq2seq-lm", T5), max_tokens=6)
    whole = encoder("seq2seq-lm", T5).token_ids(QUESTION)
    assert len(whole) > 6
    assert made.token_ids(QUESTION) == [*whole[:5], 1], "the end token stays"
    assert replace(made, max_tokens=len(whole)).token_ids(QUESTION) == whole


def test_a_decoders_question_is_not_cut_off() -> None:
    loaded = LoadedModel(
        tiny_models.build("llama"), tiny_language_models.tokenizer(), BaseModel("any", "causal-lm", "any", "any")
    )
    with pytest.raises(UsageError, match="--max-input-tokens cuts prompts at their end"):
        PromptEncoder.for_model(loaded, SQUAD, max_tokens=6)
