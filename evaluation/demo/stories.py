"""Generated stories with questions, in the SQuAD schema: the data set of the demo models.

Two groups of questions, because they react to sparse attention in opposite ways:

- look-ups ("what is the password of anna?") need one fact; a near one-hot head finds it, so few keys suffice;
- pooling ("which colour was named most often?") needs all mentions of a category; keep too few keys and it fails.

Every story comes from its own seeded `random.Random`; no global generator is read or moved.
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _listed(text: str) -> list[str]:
    return text.split()


NAMES = _listed(
    "adam anna bella boris carla chen clara david dora emil emma felix frida greta hugo ines ivan jonas "
    "julia karim laura leon maria nadia oscar paula ravi sofia"
)

LOOKUP_VALUES = {
    "likes": _listed(
        "apples bread cake carrots cheese cherries chocolate grapes honey lemons melons noodles olives onions "
        "pears pizza plums rice salad soup tomatoes"
    ),
    "plays": _listed(
        "accordion banjo bass bassoon cello chess clarinet drums fiddle flute guitar harp horn oboe organ "
        "piano saxophone trombone trumpet tuba violin"
    ),
    "password": _listed(
        "anchor basket bottle button candle carpet curtain diamond feather hammer island ladder lantern "
        "mirror needle pencil pillow ribbon rocket tulip umbrella"
    ),
    "job": _listed(
        "actor artist baker banker barber builder butcher carpenter cook dentist doctor driver farmer "
        "gardener judge lawyer miner nurse painter pilot teacher"
    ),
}
LOOKUP_SENTENCES = {
    "likes": "{name} likes {value}.",
    "plays": "{name} plays {value}.",
    "password": "the password of {name} is {value}.",
    "job": "the job of {name} is {value}.",
}
LOOKUP_QUESTIONS = {
    "likes": "what does {name} like?",
    "plays": "what does {name} play?",
    "password": "what is the password of {name}?",
    "job": "what is the job of {name}?",
}

POOL_VALUES = {
    "colour": _listed("black blue brown green grey red white yellow"),
    "animal": _listed("badger bear cat deer dog fox goat hare owl wolf"),
    "place": _listed("barn bridge church forest harbour lake market mill river tower"),
    "time": _listed("dawn dusk midday midnight noon sunset"),
}
POOL_QUESTIONS = {
    "colour": "which colour was named most often?",
    "animal": "which animal was seen most often?",
    "place": "where did most animals go?",
    "time": "when did most animals come?",
}
MENTIONS = (
    "at {time} a {colour} {animal} {verb} to the {place}.",
    "a {colour} {animal} {verb} to the {place} at {time}.",
)
MENTION_VERBS = _listed("came ran walked")

FILLERS = (
    "it was a quiet week.",
    "nobody knew why.",
    "{name} waited for {other}.",
    "{name} smiled.",
    "the wind was cold.",
    "later {name} met {other}.",
)

KINDS = (*LOOKUP_VALUES, *POOL_VALUES)
HELD_OUT_EVERY = 7
TOKEN = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class Shape:
    """How much a story holds; ranges are inclusive. The defaults are the shipped data; training starts smaller."""

    facts: int = 3  # per look-up kind, each with another name
    mentions: tuple[int, int] = (18, 24)
    fillers: tuple[int, int] = (4, 7)
    names: int = 5


FULL = Shape()


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str
    name: str = ""  # of whom a look-up asks


@dataclass(frozen=True)
class Story:
    context: str
    questions: tuple[Question, ...]  # one per kind, in the order of KINDS


@dataclass(frozen=True)
class Split:
    """A shipped split: its seed, its size, and the share of its look-up facts that training never sees."""

    seed: int
    stories: int
    held_out: float


SPLITS = {"train": Split(seed=11, stories=80, held_out=0.0), "validation": Split(seed=23, stories=60, held_out=0.4)}


def words(text: str) -> list[str]:
    """Split as the demo tokenizer does: words and punctuation marks."""
    return TOKEN.findall(text.lower())


def vocabulary() -> list[str]:
    """Every word that a story, a question or the prompt can hold, sorted."""
    texts = [*LOOKUP_SENTENCES.values(), *LOOKUP_QUESTIONS.values(), *POOL_QUESTIONS.values(), *MENTIONS, *FILLERS]
    found = set(words("question: context:")) | set(NAMES) | set(MENTION_VERBS)
    for text in texts:
        found.update(words(re.sub(r"\{\w+\}", "", text)))
    for values in (*LOOKUP_VALUES.values(), *POOL_VALUES.values()):
        found.update(values)
    return sorted(found)


def is_held_out(kind: str, name: str, value: str) -> bool:
    """Whether training never sees this fact: one in HELD_OUT_EVERY (name, value) pairs of each look-up kind."""
    pair = NAMES.index(name) + LOOKUP_VALUES[kind].index(value) + list(LOOKUP_VALUES).index(kind)
    return pair % HELD_OUT_EVERY == 0


def mention_counts(rng: random.Random, total: int) -> list[int]:
    """How often each of four values (two in tiny stories) is named, winner first.

    The winner leads by 2 to 4 of 18 to 24: seen in the average over all mentions, seldom in a handful of them.
    """
    if total < 10:
        winner = total // 2 + 1
        return [winner, total - winner]
    profiles = [
        [winner, second, third, total - winner - second - third]
        for winner in range(total // 4, (total + 1) // 2)
        for second in range(winner - 4, winner - 1)
        for third in range(1, second + 1)
        if 0 < total - winner - second - third <= third
    ]
    return list(rng.choice(profiles))


def _facts(rng: random.Random, shape: Shape, held_out: float) -> tuple[list[str], list[Question]]:
    """The fact sentences of the look-up kinds, and one question on each kind."""
    cast = rng.sample(NAMES, shape.names)
    sentences, questions = [], []
    for kind, values in LOOKUP_VALUES.items():
        free = list(values)
        facts = []
        for name in rng.sample(cast, shape.facts):
            unseen = rng.random() < held_out
            value = rng.choice([value for value in free if is_held_out(kind, name, value) == unseen])
            free.remove(value)
            facts.append((name, value))
            sentences.append(LOOKUP_SENTENCES[kind].format(name=name, value=value))
        name, value = rng.choice(facts)
        questions.append(Question(kind, LOOKUP_QUESTIONS[kind].format(name=name), value, name))
    return sentences, questions


def _mentions(rng: random.Random, total: int) -> tuple[list[str], list[Question]]:
    """Sentences that each name one value of every pooling kind, in random order, and one question on each kind."""
    named: dict[str, list[str]] = {}
    questions = []
    for kind, values in POOL_VALUES.items():
        counts = mention_counts(rng, total)
        chosen = rng.sample(values, len(counts))
        named[kind] = [value for value, count in zip(chosen, counts, strict=True) for _ in range(count)]
        rng.shuffle(named[kind])  # so that neither the first nor the last mention gives the winner away
        questions.append(Question(kind, POOL_QUESTIONS[kind], chosen[0]))
    sentences = [
        rng.choice(MENTIONS).format(verb=rng.choice(MENTION_VERBS), **{kind: named[kind][i] for kind in named})
        for i in range(total)
    ]
    return sentences, questions


def make_story(rng: random.Random, shape: Shape = FULL, held_out: float = 0.0) -> Story:
    """One story with a question of every kind. `held_out` is the share of facts that training never sees."""
    facts, lookups = _facts(rng, shape, held_out)
    mentions, pooling = _mentions(rng, rng.randint(*shape.mentions))
    fillers = []
    for _ in range(rng.randint(*shape.fillers)):
        name, other = rng.sample(NAMES, 2)
        fillers.append(rng.choice(FILLERS).format(name=name, other=other))
    sentences = facts + mentions + fillers
    rng.shuffle(sentences)
    return Story(" ".join(sentences), (*lookups, *pooling))


def answer_start(context: str, answer: str) -> int:
    """Where the answer first stands in the context as a whole word."""
    match = re.search(rf"\b{re.escape(answer)}\b", context)
    if match is None:
        raise ValueError(f"the answer {answer!r} is not in the context")
    return match.start()


def make_split(name: str) -> dict[str, Any]:
    """A split as nested SQuAD v1.1 (each context once); every question also carries its `kind`."""
    split = SPLITS[name]
    rng = random.Random(split.seed)
    articles = []
    for number in range(split.stories):
        story = make_story(rng, held_out=split.held_out)
        questions = [
            {
                "id": f"{name}-{number:03d}-{question.kind}",
                "kind": question.kind,
                "question": question.text,
                "answers": [{"text": question.answer, "answer_start": answer_start(story.context, question.answer)}],
            }
            for question in story.questions
        ]
        articles.append({"title": f"story {number}", "paragraphs": [{"context": story.context, "qas": questions}]})
    return {"version": "1.0", "data": articles}


def split_as_json(name: str) -> str:
    """The exact text of the shipped file of a split."""
    return json.dumps(make_split(name), indent=1) + "\n"


def main() -> None:
    """Write the shipped splits again: `python -m hf_sparsify.evaluation.demo.stories --output DIR`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        (output / f"{name}.json").write_text(split_as_json(name), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
