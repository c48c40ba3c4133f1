"""What ListOps gives away without any structure: rules that an encoder has to beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import torch
from listops_data import DIGITS, END, FIRST_OPERATION, VOCABULARY, Example
from torch import Tensor, nn

RIDGE = 1e-4
ITERATIONS = 100


def commonest_value(training: Sequence[Example], test: Sequence[Example]) -> float:
    return _commonest(training, test, lambda _: 0)


def commonest_by_operation(training: Sequence[Example], test: Sequence[Example]) -> float:
    """Of those with the same outermost operation."""
    return _commonest(training, test, lambda example: example.tokens[1])


def _commonest(training: Sequence[Example], test: Sequence[Example], kind: Callable[[Example], int]) -> float:
    values: dict[int, Counter[int]] = defaultdict(Counter)
    for example in training:
        values[kind(example)][example.value] += 1
    guesses = {of: found.most_common(1)[0][0] for of, found in values.items()}
    return sum(guesses.get(kind(example)) == example.value for example in test) / len(test)


def bag_of_tokens(training: Sequence[Example], test: Sequence[Example]) -> float:
    """Logistic regression on how often each token occurs, wherever it stands."""
    return sum(_bag_hits(training, test)) / len(test)


def bag_by_operation(training: Sequence[Example], test: Sequence[Example]) -> float:
    """One such regression for each outermost operation."""
    parts = ([_of(number, training), _of(number, test)] for number in range(FIRST_OPERATION, END))
    return sum(hit for part in parts if all(part) for hit in _bag_hits(*part)) / len(test)


def _of(number: int, examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.tokens[1] == number]


def _bag_hits(training: Sequence[Example], test: Sequence[Example]) -> list[bool]:
    counts, values = _counted(training)
    mean, spread = counts.mean(0), counts.std(0).clamp_min(1e-6)
    layer = nn.Linear(len(VOCABULARY), DIGITS)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = layer((counts - mean) / spread)
        loss = nn.functional.cross_entropy(logits, values) + RIDGE * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    seen, wanted = _counted(test)
    with torch.no_grad():
        return (layer((seen - mean) / spread).argmax(-1) == wanted).tolist()


def _counted(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """float32 [examples, tokens of the vocabulary], and the values int64 [examples]."""
    tokens = [torch.frombuffer(bytearray(example.tokens), dtype=torch.uint8) for example in examples]
    counts = torch.stack([torch.bincount(some, minlength=len(VOCABULARY)) for some in tokens])
    return counts.float(), torch.tensor([example.value for example in examples])


# Each gives the share of test examples whose value it finds.
RULES: dict[str, Callable[[Sequence[Example], Sequence[Example]], float]] = {
    "rule: the commonest value": commonest_value,
    "rule: the commonest value, by outermost operation": commonest_by_operation,
    "rule: bag of tokens": bag_of_tokens,
    "rule: bag of tokens, by outermost operation": bag_by_operation,
}
