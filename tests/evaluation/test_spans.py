"""Windows over a passage, and the best span over them, against a search over every pair of tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import tiny_language_models
import torch
from hf_sparsify.errors import SparsifyError
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.spans import (
    MAX_ANSWER_LENGTH,
    Window,
    WindowEncoder,
    answer_span,
    best_span,
    span_kl,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

PASSAGE = "Ann is in the attic . Ben is in the barn . Cleo is in the den ."
QUESTION = Question("q", PASSAGE, "Where is Ben ?", ("barn",))
NAMES = ("input_ids", "token_type_ids", "attention_mask")


def encoder(max_length: int = 384, stride: int = 128, **options: Any) -> WindowEncoder:
    names = NAMES if options.get("token_types", True) else ("input_ids", "attention_mask")
    tokenizer = tiny_language_models.tokenizer(pairs=True, **options)
    return WindowEncoder(tokenizer, max_length, stride, names, torch.device("cpu"))


def words(made: WindowEncoder, window: Window) -> list[str]:
    return list(made.tokenizer.convert_ids_to_tokens(window.inputs["input_ids"]))


def scores(window: Window, first: str, last: str, value: float, made: WindowEncoder) -> Tensor:
    """Logits [2, n] of 0 but for `value` where the window has the words; -5 at [CLS]."""
    logits = torch.zeros(2, len(window))
    logits[:, window.null] = -5.0
    for row, word in enumerate((first, last)):
        for place, token in enumerate(words(made, window)):
            if token == word and bool(window.context[place]):
                logits[row, place] = value
    return logits


def brute_force(logits: Tensor, context: Tensor, max_length: int) -> tuple[float, int, int]:
    pairs = [
        (float(logits[0, first] + logits[1, last]), first, last)
        for first in range(len(context))
        for last in range(first, min(first + max_length, len(context)))
        if context[first] and context[last]
    ]
    return max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]))


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_best_span_is_the_best_of_all_pairs(seed: int, length: int, max_length: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, length, generator=generator) * 3
    if ties:
        logits = logits.round()
    context = torch.rand(length, generator=generator) < 0.7
    context[int(torch.randint(length, (), generator=generator))] = True
    assert best_span(logits, context, max_length) == pytest.approx(brute_force(logits, context, max_length))


def test_a_span_never_ends_before_it_begins() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0]])
    everywhere = torch.ones(3, dtype=torch.bool)
    assert best_span(logits, everywhere) == (9.0, 0, 0)
    assert best_span(logits.flip(0), everywhere) == (18.0, 0, 2)


def test_a_span_is_no_longer_than_asked() -> None:
    logits = torch.zeros(2, 60)
    logits[0, 5], logits[1, 5 + MAX_ANSWER_LENGTH - 1], logits[1, 5 + MAX_ANSWER_LENGTH] = 4.0, 3.0, 9.0
    everywhere = torch.ones(60, dtype=torch.bool)
    score, first, last = best_span(logits, everywhere)
    # 9 alone beats 4 + 3, and 4 + 9 would be 31 tokens.
    assert (score, last) == (9.0, 5 + MAX_ANSWER_LENGTH)
    assert last - first < MAX_ANSWER_LENGTH
    assert best_span(logits, everywhere, MAX_ANSWER_LENGTH + 1) == (13.0, 5, 5 + MAX_ANSWER_LENGTH)
    logits[1, 5 + MAX_ANSWER_LENGTH] = 6.0
    assert best_span(logits, everywhere) == (7.0, 5, 5 + MAX_ANSWER_LENGTH - 1)


def test_a_short_passage_is_one_window() -> None:
    made = encoder()
    [window] = made.windows(QUESTION)
    assert words(made, window) == ["<s>", *QUESTION.question.split(), "</s>", *PASSAGE.split(), "</s>"]
    assert window.inputs["token_type_ids"] == [0] * 6 + [1] * 19
    assert window.context.tolist() == [False] * 6 + [True] * 18 + [False]
    assert window.null == 0
    texts = [PASSAGE[a:b] for a, b in window.offsets[window.context].tolist()]
    assert texts == PASSAGE.split()


def test_windows_overlap_and_cover_the_passage() -> None:
    made = encoder(max_length=17, stride=4)
    windows = made.windows(QUESTION)
    pieces = [
        [w for w, inside in zip(words(made, window), window.context, strict=True) if inside] for window in windows
    ]
    assert [len(piece) for piece in pieces] == [10, 10, 6]
    for before, after in pairwise(pieces):
        assert before[-4:] == after[:4]
    assert pieces[0] + pieces[1][4:] + pieces[2][4:] == PASSAGE.split()
    assert all(words(made, window)[:6] == words(made, windows[0])[:6] for window in windows), "each has the question"


def test_the_best_answer_may_be_in_a_later_window() -> None:
    made = encoder(max_length=17, stride=4)
    windows = made.windows(QUESTION)
    logits = [scores(window, "the", "den", value, made) for window, value in zip(windows, (1.0, 1.0, 3.0), strict=True)]
    assert answer_span(PASSAGE, windows, logits)[0] == "the den"
    logits[0] = scores(windows[0], "Ann", "attic", 4.0, made)
    assert answer_span(PASSAGE, windows, logits)[0] == "Ann is in the attic"


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@example(440, False, False)  # the best span is the second best of another window, too
@settings(max_examples=60, deadline=None)
def test_the_margin_is_to_the_second_best_of_all_pairs(seed: int, ties: bool, version_2: bool) -> None:
    windows = encoder(max_length=17, stride=4).windows(QUESTION)
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, len(window), generator=generator) * 3 for window in windows]
    if ties:
        logits = [some.round() for some in logits]
    best: dict[tuple[int, int], float] = {}  # by place in the passage: two windows may hold the same span
    for some, window in zip(logits, windows, strict=True):
        for first in range(len(window)):
            for last in range(first, len(window)):
                if window.context[first] and window.context[last]:
                    place = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                    best[place] = max(best.get(place, -torch.inf), float(some[0, first] + some[1, last]))
    spans = sorted(best.values(), reverse=True)
    null = min(float(some[:, 0].sum()) for some in logits)
    text, margin = answer_span(PASSAGE, windows, logits, version_2=version_2)
    if version_2 and null > spans[0]:
        assert (text, margin) == ("", pytest.approx(null - spans[0], abs=1e-4))
    else:
        others = [spans[1], null] if version_2 else [spans[1]]
        assert text
        assert margin == pytest.approx(spans[0] - max(others), abs=1e-4)


def test_the_only_span_there_is_has_a_margin_that_json_can_hold() -> None:
    [window] = encoder().windows(replace(QUESTION, context="barn"))
    text, margin = answer_span("barn", [window], [torch.zeros(2, len(window))])
    assert text == "barn"
    assert 1e38 < margin < math.inf


@pytest.mark.parametrize(("length", "windows"), [(9, 0), (10, 0), (11, 15), (25, 1)])
def test_a_question_needs_room_for_more_of_the_passage_than_windows_share(length: int, windows: int) -> None:
    # 7 tokens are the question's; what is left has to be more than the 3 shared ones.
    assert len(encoder(max_length=length, stride=3).windows(QUESTION)) == windows


def test_a_long_question_with_a_short_passage_fits_as_a_whole() -> None:
    short = replace(QUESTION, context="the barn")
    assert len(encoder(max_length=9, stride=3).windows(short)) == 1
    assert encoder(max_length=8, stride=3).windows(short) == []


def test_no_answer_wins_in_version_2_only() -> None:
    made = encoder(max_length=17, stride=4)
    windows = made.windows(QUESTION)
    logits = [scores(window, "barn", "barn", 2.0, made) for window in windows]
    for some, null in zip(logits, (3.0, 2.1, 5.0), strict=True):
        some[:, 0] = null
    assert answer_span(PASSAGE, windows, logits)[0] == "barn"
    assert answer_span(PASSAGE, windows, logits, version_2=True) == ("", pytest.approx(0.2))
    # The lowest of the windows counts: "no answer" has to hold in all of them.
    logits[1][:, 0] = 1.9
    assert answer_span(PASSAGE, windows, logits, version_2=True)[0] == "barn"
    logits[1][:, 0] = 2.0
    assert answer_span(PASSAGE, windows, logits, version_2=True) == ("barn", 0), "equal scores: the answer"


def test_the_answer_is_cut_from_the_passage_as_it_stands_there() -> None:
    made = encoder()
    passage = "  Ann   is  in\tthe  “äöü ß”  𝒳 naïve   attic\n."
    question = replace(QUESTION, context=passage)
    [window] = made.windows(question)
    places = [index for index, inside in enumerate(window.context.tolist()) if inside]
    pieces = [passage[a:b] for a, b in window.offsets[window.context].tolist()]
    assert [piece for piece in pieces if piece not in "“”"] == [
        *("Ann", "is", "in", "the", "äöü", "ß", "𝒳", "naïve", "attic", ".")
    ]
    for first, last, text in (
        ("is", "the", "is  in\tthe"),
        ("äöü", "naïve", "äöü ß”  𝒳 naïve"),
        ("attic", ".", "attic\n."),
    ):
        logits = torch.zeros(2, len(window))
        logits[0, places[pieces.index(first)]] = logits[1, places[pieces.index(last)]] = 7.0
        assert answer_span(passage, [window], [logits])[0] == text


def test_tokens_without_characters_begin_and_end_no_answer() -> None:
    made = encoder()
    [window] = made.windows(QUESTION)

    class Empty(dict):  # type: ignore[type-arg]
        def sequence_ids(self, index: int) -> list[int | None]:
            return [None, *([0] * 4), None, *([1] * 18), None]

    offsets = window.offsets.tolist()
    offsets[10] = [offsets[10][0], offsets[10][0]]
    encoded = Empty({name: [window.inputs[name]] for name in NAMES} | {"offset_mapping": [offsets]})
    assert made._window(encoded, 0).context.tolist() == [6 <= place < 24 and place != 10 for place in range(25)]


def test_no_cls_token_means_the_first() -> None:
    made = encoder()
    made.tokenizer.cls_token = None
    assert made.windows(QUESTION)[0].null == 0


@pytest.mark.parametrize("token_types", [True, False])
def test_batches_are_padded_on_the_right(token_types: bool) -> None:
    made = encoder(token_types=token_types)
    made.tokenizer.padding_side = "left"
    [long], [short] = made.windows(QUESTION), made.windows(replace(QUESTION, context="Ben is in the barn ."))
    batch = made.batch([short, long])
    assert set(batch) == (set(NAMES) if token_types else {"input_ids", "attention_mask"})
    assert all(tensor.shape == (2, 25) for tensor in batch.values())
    assert batch["input_ids"][0, :13].tolist() == short.inputs["input_ids"]
    assert batch["attention_mask"].tolist() == [[1] * 13 + [0] * 12, [1] * 25]


def test_kl_is_over_the_context_and_no_answer() -> None:
    [window] = encoder().windows(QUESTION)
    generator = torch.Generator().manual_seed(0)
    dense, patched = torch.randn(2, 25, generator=generator), torch.randn(2, 25, generator=generator)
    places = [0, *range(6, 24)]
    by_hand = 0.0
    for row in (0, 1):
        p, q = ([math.exp(float(logits[row, i])) for i in places] for logits in (dense, patched))
        p, q = ([value / sum(values) for value in values] for values in (p, q))
        by_hand += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    assert span_kl(dense, patched, window) == pytest.approx(by_hand, rel=1e-4)
    dense[:, [1, 5, 24]] = 50.0
    assert span_kl(dense, patched, window) == pytest.approx(by_hand, rel=1e-4), "the question and [SEP] do not count"
    assert span_kl(dense, dense + 3, window) == pytest.approx(0, abs=1e-6)


def test_window_sizes_follow_model_and_tokenizer() -> None:
    class Model:
        class config:
            is_encoder_decoder = False
            max_position_embeddings = 512

        device = torch.device("cpu")

        def named_modules(self) -> list[Any]:
            return []

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> None: ...

    model: Any = Model()
    tokenizer = tiny_language_models.tokenizer(pairs=True)

    def sizes() -> tuple[int, int]:
        made = WindowEncoder.for_model(model, tokenizer)
        return made.max_length, made.stride

    assert sizes() == (384, 128)
    tokenizer.model_max_length = 120
    assert sizes() == (120, 40)
    Model.config.max_position_embeddings = 96
    assert sizes() == (96, 32)
    assert WindowEncoder.for_model(model, tokenizer).names == ("input_ids", "attention_mask"), "as forward takes them"


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(SparsifyError, match=r"Slow does not say where .* fast tokenizer"):
        WindowEncoder.for_model(None, Slow())


def test_a_span_that_two_windows_share_is_no_other_answer() -> None:
    offsets = torch.tensor([[0, 3], [4, 7], [8, 11]])
    shared = Window({"input_ids": [1, 2, 3]}, offsets, torch.ones(3, dtype=torch.bool), 0)
    logits = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 2.0]])
    text, margin = answer_span("Ann Ben Cid", [shared, shared], [logits, logits - 0.25])
    assert text == "Ann"
    assert margin == pytest.approx(18 - 11), "Ann Ben Cid is the next best"
