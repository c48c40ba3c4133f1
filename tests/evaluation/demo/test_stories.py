"""The embedded stories: generated again to the byte, fair, and without what training must not see."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hf_sparsify.evaluation.demo import DEMO_SPLITS, demo_data_path, stories
from hf_sparsify.evaluation.demo.stories import FULL, KINDS, LOOKUP_SENTENCES, LOOKUP_VALUES, NAMES, POOL_VALUES, words


def flat_rows(split: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a nested split: id, title, context, question, answers {text, answer_start}, kind."""
    for article in split["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "id": question["id"],
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {
                        "text": [answer["text"] for answer in question["answers"]],
                        "answer_start": [answer["answer_start"] for answer in question["answers"]],
                    },
                    "kind": question["kind"],
                }


SPLIT_ROWS = {split: list(flat_rows(json.loads(demo_data_path(split).read_text()))) for split in DEMO_SPLITS}
ALL_ROWS = [row for rows in SPLIT_ROWS.values() for row in rows]


def held_out_facts(context: str) -> list[tuple[str, str, str]]:
    """The held-out facts that a story states."""
    return [
        (kind, name, value)
        for kind, sentence in LOOKUP_SENTENCES.items()
        for name in NAMES
        for value in LOOKUP_VALUES[kind]
        if stories.is_held_out(kind, name, value) and sentence.format(name=name, value=value) in context
    ]


@pytest.mark.parametrize("split", DEMO_SPLITS)
def test_shipped_file_is_what_the_generator_writes(split: str) -> None:
    assert demo_data_path(split).read_bytes() == stories.split_as_json(split).encode()


def test_same_seed_same_story_and_global_generator_untouched() -> None:
    before = random.getstate()
    assert stories.make_story(random.Random(3)) == stories.make_story(random.Random(3))
    assert stories.make_story(random.Random(3)) != stories.make_story(random.Random(4))
    assert random.getstate() == before


def test_answer_is_one_word_and_stands_where_the_row_says() -> None:
    for row in ALL_ROWS:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert words(text) == [text]


@pytest.mark.parametrize("split", DEMO_SPLITS)
def test_kinds_are_balanced_and_ids_unique(split: str) -> None:
    rows = SPLIT_ROWS[split]
    assert set(Counter(row["kind"] for row in rows).values()) == {len(rows) // len(KINDS)}
    assert len({row["id"] for row in rows}) == len(rows)


def test_story_lengths_and_vocabulary() -> None:
    known = set(stories.vocabulary())
    for row in ALL_ROWS:
        assert 150 <= len(words(row["context"])) <= 400
        assert set(words(f"question: {row['question']} context: {row['context']}")) <= known


def test_splits_share_no_story() -> None:
    contexts = {split: {row["context"] for row in rows} for split, rows in SPLIT_ROWS.items()}
    assert not contexts["train"] & contexts["validation"]


def test_held_out_facts_are_never_in_training() -> None:
    assert not any(held_out_facts(row["context"]) for row in SPLIT_ROWS["train"])
    rng = random.Random(0)
    assert not any(held_out_facts(stories.make_story(rng).context) for _ in range(200))


def test_validation_asks_for_seen_and_unseen_facts() -> None:
    unseen = Counter()
    for row in SPLIT_ROWS["validation"]:
        if row["kind"] in LOOKUP_VALUES:
            (name,) = [word for word in words(row["question"]) if word in NAMES]
            unseen[stories.is_held_out(row["kind"], name, row["answers"]["text"][0])] += 1
    assert min(unseen[True], unseen[False]) > 60


def test_one_in_seven_pairs_is_held_out() -> None:
    for kind, values in LOOKUP_VALUES.items():
        share = sum(stories.is_held_out(kind, name, value) for name in NAMES for value in values)
        assert share / (len(NAMES) * len(values)) == pytest.approx(1 / 7, abs=0.01)


def test_lookup_answer_is_stated_once() -> None:
    for row in ALL_ROWS:
        if row["kind"] in LOOKUP_VALUES:
            assert words(row["context"]).count(row["answers"]["text"][0]) == 1


def test_pooling_winner_leads_by_two_to_four_of_many() -> None:
    for row in ALL_ROWS:
        if row["kind"] in POOL_VALUES:
            counts = Counter(word for word in words(row["context"]) if word in POOL_VALUES[row["kind"]]).most_common()
            assert [counts[0][0]] == row["answers"]["text"]
            assert 2 <= counts[0][1] - counts[1][1] <= 4
            assert FULL.mentions[0] <= sum(count for _, count in counts) <= FULL.mentions[1]


def test_first_and_last_mention_do_not_give_the_winner_away() -> None:
    rng = random.Random(1)
    first = last = total = 0
    for _ in range(400):
        story = stories.make_story(rng)
        for question in story.questions:
            if question.kind in POOL_VALUES:
                named = [word for word in words(story.context) if word in POOL_VALUES[question.kind]]
                first, last, total = (
                    first + (named[0] == question.answer),
                    last + (named[-1] == question.answer),
                    total + 1,
                )
    assert first / total < 0.45
    assert last / total < 0.45
