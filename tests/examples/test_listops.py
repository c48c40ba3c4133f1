"""What examples/listops*.py generate, compare with, train and keep."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
with pytest.MonkeyPatch.context() as paths:
    paths.syspath_prepend(str(EXAMPLES))
    import listops
    import listops_data
    import listops_rules
    import listops_training
    from listops_data import END, FIRST_DIGIT, FIRST_OPERATION, Example, Grammar

SHORT = Grammar(min_length=10, max_length=40, max_depth=4, max_arguments=5)


def value_of(text: str) -> int:
    """By hand: the innermost operations are replaced by their values until one digit is left."""
    while match := re.search(r"\[(MAX|MIN|MED|SM)((?: \d)+) \]", text):
        digits = sorted(int(digit) for digit in match[2].split())
        half = len(digits) // 2
        values = {
            "MAX": digits[-1],
            "MIN": digits[0],
            "MED": digits[half] if len(digits) % 2 else math.floor((digits[half - 1] + digits[half]) / 2),
            "SM": sum(digits) % 10,
        }
        text = f"{text[: match.start()]}{values[match[1]]}{text[match.end() :]}"
    return int(text)


def shape_of(tokens: bytes) -> tuple[int, list[int]]:
    """Levels, the digits' included, and the number of arguments of each operation."""
    deepest, open_, arguments = 0, [], []
    for token in tokens[1:]:
        if token == END:
            arguments.append(open_.pop())
            continue
        if open_:
            open_[-1] += 1
        deepest = max(deepest, len(open_) + 1)
        if token >= FIRST_OPERATION:
            open_.append(0)
    assert not open_
    return deepest, arguments


def test_the_example_of_the_docstring() -> None:
    text = "[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]"
    assert text in (listops_data.__doc__ or "")
    assert value_of(text) == 5


@pytest.mark.parametrize("grammar", [SHORT, Grammar(max_depth=10, min_length=501, max_length=1999)], ids=str)
def test_values_are_those_of_another_evaluator(grammar: Grammar) -> None:
    for example in listops_data.generate(grammar, 60, seed=1):
        assert value_of(listops_data.spell(example)) == example.value


def test_expressions_keep_to_the_grammar() -> None:
    examples = listops_data.generate(SHORT, 400, seed=2)
    shapes = [shape_of(example.tokens) for example in examples]
    lengths = [len(example.tokens) - 1 for example in examples]
    assert min(lengths) == SHORT.min_length
    assert SHORT.max_length - 3 < max(lengths) <= SHORT.max_length
    assert max(depth for depth, _ in shapes) == SHORT.max_depth
    arguments = Counter(count for _, counts in shapes for count in counts)
    assert set(arguments) == {2, 3, 4, 5}
    assert all(FIRST_DIGIT <= token <= END for example in examples for token in example.tokens[1:])


def test_the_default_is_the_published_task() -> None:
    example = max(listops_data.generate(Grammar(), 40, seed=0), key=lambda example: len(example.tokens))
    assert 1000 < len(example.tokens) <= 2000
    depth, arguments = shape_of(example.tokens)
    assert depth <= 10
    assert max(arguments) == 10


def test_a_seed_gives_the_same_expressions_each_once_and_fewer_are_the_first_of_more() -> None:
    examples = listops_data.generate(SHORT, 300, seed=3)
    assert examples[:100] == listops_data.generate(SHORT, 100, seed=3)
    assert examples != listops_data.generate(SHORT, 300, seed=4)
    assert len({example.tokens for example in examples}) == 300


def test_all_values_and_operations_occur_and_none_prevails() -> None:
    examples = listops_data.generate(SHORT, 2000, seed=5)
    values = Counter(example.value for example in examples)
    assert set(values) == set(range(10))
    assert max(values.values()) < 0.25 * len(examples)
    operations = Counter(example.tokens[1] for example in examples)
    assert len(operations) == 4
    assert min(operations.values()) > 0.2 * len(examples)


def test_batches_are_of_one_length_and_hold_every_example_once() -> None:
    examples = listops_data.generate(SHORT, 500, seed=6)
    rest = list(listops_data.batches(examples, 8, random.Random(0), whole=False))
    assert sorted(example for batch in rest for example in batch) == sorted(examples)
    whole = list(listops_data.batches(examples, 8, random.Random(0)))
    assert {len(batch) for batch in whole} == {8}
    assert all(len({len(example.tokens) for example in batch}) == 1 for batch in [*whole, *rest])
    assert whole == list(listops_data.batches(examples, 8, random.Random(0)))
    assert whole != list(listops_data.batches(examples, 8, random.Random(1)))
    with pytest.raises(ValueError, match="smaller"):
        list(listops_data.batches(examples, 500, random.Random(0)))


def of(operation: str, digits: str, value: int) -> Example:
    tokens = ["[CLS]", operation, *digits, "]"]
    return Example(bytes(listops_data.NUMBERS[token] for token in tokens), value)


def test_rules_find_what_they_look_at() -> None:
    training = [of("[MAX", "99", 9), of("[MAX", "98", 9), of("[MIN", "00", 0), of("[MAX", "80", 8)] * 5
    test = [of("[MAX", "89", 9), of("[MIN", "89", 8), of("[MIN", "00", 0), of("[MAX", "80", 8)]
    shares = [rule(training, test) for rule in listops_rules.RULES.values()]
    assert shares == [0.25, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("method", listops_training.METHODS)
def test_a_run_depends_on_its_seed_alone(method: str) -> None:
    size = replace(listops_training.SIZES["small"], grammar=SHORT, steps=3, batch_size=4, k=4, clusters=4, refined=4)
    examples = listops_data.generate(SHORT, 200, seed=7)

    def weights(seed: int) -> torch.Tensor:
        learner = listops_training.Learner(size, method, seed, torch.device("cpu"))
        for batch in list(listops_data.batches(examples, 4, random.Random(seed)))[:3]:
            assert math.isfinite(learner.step(batch))
        return learner.model.classifier.weight.detach()

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_what_is_finished_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []

    def train(size: object, method: str, seed: int, *rest: object) -> float:
        if seed == 2:
            raise KeyboardInterrupt
        made.append(seed)
        return (0.25, 0.75)[seed]

    def run(*options: str) -> tuple[int, str]:
        arguments = ["--length", "8-16", "--methods", "top-k", "--output", str(tmp_path / "out.json"), *options]
        monkeypatch.setattr(sys, "argv", ["listops.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            listops.main()
        return stop.value.code, capsys.readouterr().out

    small = replace(listops_training.SIZES["small"], train=200, test=50, steps=5)
    monkeypatch.setitem(listops_training.SIZES, "small", small)
    monkeypatch.setattr(listops, "train", train)
    monkeypatch.setattr(listops, "in_own_process", lambda *_: (3 * 2**20, 0.125))
    assert run("--seeds", "1") == (0, ANY)
    status, table = run("--seeds", "3")
    assert status == 130
    assert "| top-k | 50.0 +- 35.4 | 2 | 5 | 3 | 0.125 |" in table
    assert made == [0, 1]
    assert run("--seeds", "2", "--steps", "7") == (2, "")  # other settings
    assert run("--seeds", "2") == (0, table)
    monkeypatch.setattr(listops, "version", lambda _: "1.0")
    assert run("--seeds", "2") == (2, "")  # other code
    assert made == [0, 1]


@pytest.mark.parametrize(
    "options",
    [["--length", "9-8"], ["--seeds", "0"], ["--methods", "dense,none"], ["--output", "."], ["--output", "no/such"]],
    ids=str,
)
def test_what_is_no_experiment_is_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["listops.py", *options])
    with pytest.raises(SystemExit) as stop:
        listops.main()
    assert stop.value.code == 2
