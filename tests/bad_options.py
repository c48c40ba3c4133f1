"""Wrong values of options, for every command."""

from __future__ import annotations

import random
from collections.abc import Iterator

from fault_drill import Case

TUNE = ("llama", "-d", "q.jsonl", "--calibrate-on", "train.jsonl")
# What a command needs to get as far as its options, and not to take long if one of them happens to be good.
BASES: dict[str, tuple[str, ...]] = {
    "patch": ("patch", "llama", "--no-verify", "-o", "out"),
    "inspect": ("inspect", "plain", "--lengths", "8"),
    "validate": ("validate", "plain", "--no-verify"),
    "calibrate": ("calibrate", "plain", "-d", "q.jsonl", "-o", "out"),
    "eval": ("eval", "plain", "-d", "q.jsonl", "--max-new-tokens", "2", "--no-cache", "-o", "out"),
    "sweep": (
        *(
            "sweep",
            "llama",
            "-d",
            "q.jsonl",
            "--methods",
            "top-k",
            "--keep",
            "0.5",
            "--max-new-tokens",
            "2",
            "--no-cache",
        ),
        *("-o", "out"),
    ),
    "bench": (
        *("bench", "plain", "--lengths", "8", "--repeats", "1", "--new-tokens", "1", "--no-memory", "--no-eager"),
        *("-o", "out"),
    ),
    "generate": ("generate", "plain", "Where ?", "--max-new-tokens", "2"),
    "tune": ("tune", *TUNE, "--keep", "0.5", "--samples", "1", "--max-new-tokens", "2", "--no-cache", "-o", "out"),
    "plot": ("plot", "done", "-d", "q.jsonl", "-o", "out"),
}
NO_NUMBERS = ("", "x", "0x10", "--", "½", "1,000", "[red]3")
NO_WHOLE_NUMBERS = (*NO_NUMBERS, "nan", "inf", "0.5", "1e3", "9" * 5000)
TEXTS = ("", " ", "magic", "é", "日本語", "\udcff", "a" * 5000, "[bold]x[/bold]", "%s{k}", "../x", "1\n2", "\x1b[31mx")

# Option -> the values that are wrong beside those that are no numbers. HUGE is refused or taken, and never breaks.
HUGE = ("1000000000000000000", "9223372036854775808", "1000000000000000000000000000000")
WHOLE: dict[str, dict[str, tuple[str, ...]]] = {
    "patch": {
        "--k": ("0", "-1", "-9223372036854775809"),
        "--min-keep": ("0", "-1", "2"),
        "--clusters": ("0", "-1", "2"),
        "--min-length": ("-1",),
        "--ffn-k": ("0", "-1", "2"),
        "--protect-first": ("-1", "65"),
        "--protect-recent": ("-1", "65"),
    },
    "calibrate": {
        "--samples": ("0", "-1"),
        "--distractors": ("-1",),
        "--k": ("0", "-1"),
    },
    "eval": {
        "--limit": ("0", "-1"),
        "--batch-size": ("0", "-1"),
        "--max-new-tokens": ("0", "-1", "513"),
        "--max-input-tokens": ("0", "-1"),
        "--shots": ("-1",),
        "--distractors": ("-1",),
        "--seed": ("-1",),
    },
    "sweep": {
        "--limit": ("0", "-1"),
        "--batch-size": ("0", "-1"),
        "--max-new-tokens": ("0", "-1", "513"),
        "--seed": ("-1",),
        "--samples": ("0", "-1"),
        "--min-length": ("-1",),
        "--protect-first": ("-1",),
    },
    "bench": {
        "--new-tokens": ("-1", "513"),
        "--batch-size": ("0", "-1"),
        "--repeats": ("0", "-1"),
    },
    "generate": {"--max-new-tokens": ("0", "-1", "513")},
    "tune": {
        "--samples": ("0", "-1"),
        "--limit": ("0", "-1"),
        "--batch-size": ("0", "-1"),
        "--max-new-tokens": ("0", "-1", "513"),
        "--seed": ("-1",),
    },
    "plot": {"--layer": ("-1", "7"), "--head": ("-1", "7")},
}
# Those that would run for ever, or take all memory, because that was asked for.
ENDLESS = {("bench", "--repeats"), ("bench", "--batch-size")}
FRACTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "patch": {"--keep": ("0", "-0.5", "1.5", "nan", "inf", "-inf", "1e400"), "--ffn-keep": ("0.5", "nan", "-1")},
    "calibrate": {"--keep": ("0", "2", "nan", "inf"), "--alpha": ("0.5", "nan", "inf", "-inf")},
    "eval": {
        "--max-drop": ("0", "-1", "101", "nan", "inf", "-inf"),
        "--min-recovery": ("0", "-1", "1.01", "nan", "inf", "-inf"),
    },
    "sweep": {
        "--keep": ("0", "-0.5", "1.5", "nan", "inf", "1e400", "0.5,", ",", "0.5 0.1"),
        "--ffn-keep": ("0", "nan", "2", "0.5,,0.1"),
        "--ffn-k": ("0", "-1", "0.5", "64,"),
        "--max-drop": ("0", "-1", "101", "nan"),
    },
    "tune": {
        "--keep": ("0", "-0.5", "1", "1.5", "nan", "inf", "1e400", "0.5,", ",", "0.5 0.1", "0.5,0.5"),
        "--max-drop": ("0", "-1", "101", "nan"),
        "--min-recovery": ("0", "1.01", "nan"),
    },
}
CHOICES: dict[str, tuple[str, ...]] = {
    "patch": (
        *("--attention", "--compensation", "--v-mean", "--placement", "--ffn", "--kind", "--stack", "--layers"),
        *("--skip-layers", "--set", "--dtype", "--device", "--device-map", "--denominator", "--clustering"),
    ),
    "inspect": ("--lengths", "--dtype"),
    "validate": ("--dtype", "--device"),
    "calibrate": ("--compensation", "--placement", "--estimator", "--activations", "--denominator", "--dtype"),
    "eval": ("--dtype", "--device", "--split", "--harness", "--task"),
    "sweep": ("--methods", "--compensation", "--clusters", "--layers", "--kind", "--stack", "--dtype", "--split"),
    "bench": ("--lengths", "--dtype"),
    "generate": ("--device", "--dtype"),
    "tune": (
        *("--goal", "--attention", "--compensation", "--ffn", "--layers", "--skip-layers", "--kind", "--stack"),
        *("--dtype", "--split"),
    ),
    "plot": ("--format", "--split", "--dtype"),
}


def with_option(command: str, option: str, value: str) -> tuple[str, ...]:
    """A command with an option; what the base gives for it is left out."""
    base = list(BASES[command])
    if option in base:
        place = base.index(option)
        del base[place : place + 2]
    return (*base, f"{option}={value}")


def named(option: str, value: str) -> tuple[str, ...]:
    """What a message about an option may hold: its name, or the words that stand for it."""
    words = option.removeprefix("--")
    bare = (f"{words} must",) if len(words) < 3 else (words, words.replace("-", "_"), words.replace("-", " "))
    return (option, *bare, *((value,) if len(value.strip()) > 1 else ()))


def numbers() -> Iterator[Case]:
    """Numbers that are out of range, and what is no number at all."""
    for kinds, wrong in ((WHOLE, NO_WHOLE_NUMBERS), (FRACTIONS, NO_NUMBERS)):
        for command, options in kinds.items():
            for option, values in options.items():
                for value in (*values, *wrong):
                    yield Case(with_option(command, option, value), named(option, value))


def huge_numbers() -> Iterator[Case]:
    """Whole numbers beyond what the machine counts with; some are taken, as a limit that is never reached."""
    for command, options in WHOLE.items():
        for option in options:
            for value in HUGE if (command, option) not in ENDLESS else ():
                yield Case(with_option(command, option, value), named(option, value), surely=False)


def choices() -> Iterator[Case]:
    """Words where one of a few is expected."""
    for command, options in CHOICES.items():
        for option in options:
            for value in TEXTS:
                yield Case(with_option(command, option, value), named(option, value))


def at_random(chance: random.Random, count: int) -> Iterator[Case]:
    """A wrong option among others that are right or wrong."""
    single = [case for made in (numbers(), choices()) for case in made]
    for _ in range(count):
        case = chance.choice(single)
        command = case.arguments[0]
        more = [
            with_option(command, option, chance.choice((*values, "1", "2")))[-1]
            for kinds in (WHOLE, FRACTIONS)
            for option, values in kinds.get(command, {}).items()
            if chance.random() < 0.3
        ]
        chance.shuffle(more)
        names = tuple(name for text in more for name in named(*text.split("=", 1)))
        yield Case((*case.arguments[:-1], *more, case.arguments[-1]), (*case.named, *names), surely=False)
