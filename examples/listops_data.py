"""ListOps: nested list operations over digits whose value, again a digit, is to be told from the tokens alone.

Nangia & Bowman 2018 (arXiv 1804.06028), in the long form of Long Range Arena, Tay et al. 2021 (arXiv 2011.04006):

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]    is 5

A node is an operation with probability 1/4 and else a digit, at the greatest depth always a digit; an operation has
between two and the greatest number of arguments. Expressions outside the wanted lengths are thrown away.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

DIGITS = 10
OPERATION_SHARE = 0.25
OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(
        statistics.median(values)
    ),  # of an even number: the mean of the middle two, rounded down
    "[SM": lambda values: sum(values) % DIGITS,
}
# A token's place is its number; expressions begin after the first.
VOCABULARY = ("[CLS]", *map(str, range(DIGITS)), *OPERATIONS, "]")
NUMBERS = {token: number for number, token in enumerate(VOCABULARY)}
FIRST_DIGIT, END = NUMBERS["0"], NUMBERS["]"]
FIRST_OPERATION = NUMBERS["[MAX"]


class Example(NamedTuple):
    """tokens: numbers in VOCABULARY, [CLS] first. value: 0 to 9."""

    tokens: bytes
    value: int


@dataclass(frozen=True)
class Grammar:
    """min_length, max_length: tokens of an expression without [CLS]. max_depth: levels, that of the digits included."""

    min_length: int = 501
    max_length: int = 1999
    max_depth: int = 10
    max_arguments: int = 10


class TooLong(Exception):
    """An expression has more tokens than are wanted."""


def generate(grammar: Grammar, count: int, seed: int) -> list[Example]:
    """Different expressions; equal grammars and seeds give the same, and more of them begin with those of fewer."""
    rng = random.Random(seed)
    found: dict[bytes, int] = {}
    while len(found) < count:
        tokens = bytearray([NUMBERS["[CLS]"]])
        try:
            value = _operation(grammar, rng, tokens, depth=1)
        except TooLong:
            continue
        if len(tokens) > grammar.min_length:
            found.setdefault(bytes(tokens), value)
    return [Example(tokens, value) for tokens, value in found.items()]


def _operation(grammar: Grammar, rng: random.Random, tokens: bytearray, depth: int) -> int:
    """Writes an operation and returns its value."""
    number = FIRST_OPERATION + int(rng.random() * len(OPERATIONS))
    tokens.append(number)
    values = []
    for _ in range(rng.randint(2, grammar.max_arguments)):
        if depth + 1 < grammar.max_depth and rng.random() < OPERATION_SHARE:
            values.append(_operation(grammar, rng, tokens, depth + 1))
        else:
            values.append(int(rng.random() * DIGITS))
            tokens.append(FIRST_DIGIT + values[-1])
    tokens.append(END)
    if len(tokens) > grammar.max_length + 1:
        raise TooLong
    return OPERATIONS[VOCABULARY[number]](values)


def spell(example: Example) -> str:
    """'[MAX 4 3 ]'."""
    return " ".join(VOCABULARY[number] for number in example.tokens[1:])


def batches(
    examples: Sequence[Example], size: int, rng: random.Random, *, whole: bool = True
) -> Iterator[list[Example]]:
    """Batches in random order, each of expressions of one length, so that nothing is padded.

    whole: leaves out what does not fill a batch, other examples each time; ValueError if nothing fills one.
    """
    of_length: dict[int, list[Example]] = defaultdict(list)
    for example in rng.sample(examples, len(examples)):
        of_length[len(example.tokens)].append(example)
    parts = [some[start : start + size] for some in of_length.values() for start in range(0, len(some), size)]
    if whole:
        parts = [part for part in parts if len(part) == size]
        if not parts:
            raise ValueError(f"no {size} expressions have the same length: make batches smaller")
    rng.shuffle(parts)
    yield from parts
