"""Wrong values and combinations of options, for every command."""

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
    "eval": ("--dtype", "--device", "--split", "--harness"),
    "sweep": ("--methods", "--compensation", "--clusters", "--layers", "--kind", "--stack", "--dtype", "--split"),
    "bench": ("--lengths", "--dtype"),
    "generate": ("--device", "--dtype"),
    "tune": (
        *("--goal", "--attention", "--compensation", "--ffn", "--layers", "--skip-layers", "--kind", "--stack"),
        *("--dtype", "--split"),
    ),
    "plot": ("--format", "--split", "--dtype"),
}
# What belongs together and is given apart, or apart and given together; and other things that one could type.
COMBINATIONS = (
    "patch llama --k 4 --keep 0.5 -o out",
    "patch llama --attention none -o out",
    "patch llama --attention none --k 4 -o out",
    "patch llama --attention clustered --no-verify -o out",
    "patch llama --attention clustered --keep 0.5 -o out",
    "patch llama --attention clustered-plain --k 4 -o out",
    "patch llama --attention top-theta --clusters 4 -o out",
    "patch llama --attention top-k --clustering hamming -o out",
    "patch llama --set model.layers.0.self_attn=clustered,bits=32 -o out",
    "patch llama --attention top-k --placement post-softmax -o out",
    "patch llama --v-mean dropped --compensation none -o out",
    "patch llama --compensation sdc --v-mean visible -o out",
    "patch llama --ffn top-k --ffn-k 4 --ffn-keep 0.5 -o out",
    "patch llama --ffn top-k --ffn-k 0 -o out",
    "patch llama --ffn-keep 0.5 -o out",
    "patch llama --k 4 --protect-first 3 --protect-recent 2 -o out",
    "patch llama --layers 0 --skip-layers 0 -o out",
    "patch llama --layers 7 -o out",
    "patch llama --layers 1-0 -o out",
    "patch llama --layers 0-99999999999999999999 -o out",
    "patch llama --kind cross -o out",
    "patch llama --stack encoder -o out",
    "patch llama --set nothing=none -o out",
    "patch llama --set re:(=none -o out",
    "patch llama --set model.layers.0.self_attn=top-k,k=0 -o out",
    "patch llama --set model.layers.0.self_attn=top-k,k=nan -o out",
    "patch llama --set model.layers.0.self_attn=top-k,magic=1 -o out",
    "patch llama --set =top-k -o out",
    "patch llama --set model.layers.0.self_attn -o out",
    "patch llama --set model.layers.0.self_attn=clustered -o out",
    "patch llama --dataset q.jsonl -o out",
    "patch llama --split train -o out",
    "patch -o out",
    "patch llama other -o out",
    "patch llama --thresholds plain -o out",
    "patch llama --thresholds nowhere -o out",
    "patch --thresholds done --k 4 --keep 0.5 -o out",
    "patch --thresholds done --attention top-k -o out",
    "patch --thresholds done --k 0 -o out",
    "patch --thresholds done --k 4000 -o out",
    "patch --thresholds done --keep 7 -o out",
    "patch --thresholds done --split train -o out",
    "patch --thresholds done -o done",
    "patch bert-qa --thresholds done -o out",
    "patch --thresholds done --dataset nowhere.jsonl -o out",
    "patch llama --k 5 -o plain",
    "patch llama --save-model -o llama",
    "patch llama --device-map auto --device cpu -o out",
    "patch llama --gguf-file nowhere.gguf -o out",
    "patch llama --magic -o out",
    "patch llama --k",
    "patch llama --denominator offline -o out",
    "patch llama --denominator rounded --compensation none -o out",
    "inspect",
    "inspect llama plain",
    "inspect llama --model llama",
    "inspect plain --model bert-qa",
    "inspect plain --lengths 0",
    "inspect plain --gguf-file nowhere.gguf",
    "validate llama",
    "validate done plain",
    "validate plain --model bert-qa",
    "validate plain --k 4",
    "calibrate llama -d q.jsonl --model llama -o out",
    "calibrate plain -d q.jsonl --k 4 --keep 0.5 -o out",
    "calibrate plain -d q.jsonl --k 4000 -o out",
    "calibrate plain -d q.jsonl --alpha 1 -o out",
    "calibrate plain -d q.jsonl --split train -o out",
    "calibrate plain -d q.jsonl -o done",
    "calibrate plain -d demo --split middle -o out",
    "calibrate plain -d q.jsonl --denominator offline --compensation sdc+vmc -o out",
    "calibrate plain -d q.jsonl --model bert-qa -o out",
    "calibrate plain -d q.jsonl -d nowhere.jsonl -o out",
    "calibrate plain -d nothing=q.jsonl -o out",
    "calibrate plain -d boolq=q.jsonl -o out",
    "calibrate plain -d squad= -o out",
    "calibrate plain done -d q.jsonl",
    "eval plain -d q.jsonl --as-top-k -o out",
    "eval plain plain -d q.jsonl",
    "eval plain ./plain -d q.jsonl",
    "eval plain done -d q.jsonl -o out",
    "eval plain llama -d q.jsonl",
    "eval llama plain -d q.jsonl --model llama",
    "eval plain -d q.jsonl --shots-from q.jsonl -o out",
    "eval plain -d q.jsonl --shots 1 -o out",
    "eval plain -d q.jsonl --shots 9 --shots-from q.jsonl -o out",
    "eval plain -d q.jsonl --shots 1 --shots-from nowhere.jsonl -o out",
    "eval plain -d q.jsonl --split train -o out",
    "eval plain -d demo --split middle -o out",
    "eval plain -d q.jsonl --prompt-template nowhere.txt -o out",
    "eval plain -d q.jsonl --prompt-template llama -o out",
    "eval plain -d q.jsonl --prompt-template q.jsonl -o out",
    "eval plain -d q.jsonl --prompt-template llama/model.safetensors -o out",
    "eval plain -d q.jsonl --harness boolq -o out",
    "eval bert-qa -d q.jsonl --shots 1 --shots-from q.jsonl -o out",
    "eval plain -d nothing=q.jsonl -o out",
    "eval plain -d boolq=q.jsonl -o out",
    "eval plain -d text=q.jsonl -o out",
    "sweep",
    "sweep llama other -d q.jsonl -o out",
    "sweep plain -d q.jsonl --methods top-k -o out",
    "sweep llama -d q.jsonl --methods top-theta -o out",
    "sweep llama -d q.jsonl --methods top-k --calibrate-on q.jsonl -o out",
    "sweep llama -d q.jsonl --methods top-theta --calibrate-on nowhere.jsonl -o out",
    "sweep llama -d q.jsonl --methods clustered -o out",
    "sweep llama -d q.jsonl --methods clustered --keep 0.5 -o out",
    "sweep llama -d q.jsonl --methods none -o out",
    "sweep llama -d q.jsonl --methods top-k --k 4 --keep 0.5 -o out",
    "sweep llama -d q.jsonl --methods top-k --k 4,x -o out",
    "sweep llama -d q.jsonl --methods top-k --k 4 --protect-first 5 -o out",
    "sweep llama -d q.jsonl --methods top-k --layers 7 -o out",
    "sweep llama -d q.jsonl --methods top-k --lengths 8 -o out",
    "sweep llama -d q.jsonl --methods top-k -o plain",
    "sweep llama -d q.jsonl --methods top-k --force -o plain",
    "sweep llama -d q.jsonl --methods top-k --as-top-k -o out",
    "sweep llama -d nowhere.jsonl --methods top-k -o out",
    "bench plain --lengths 0 --no-memory -o out",
    "bench plain --lengths -5 --no-memory -o out",
    "bench plain --lengths 513 --no-memory -o out",
    "bench plain --lengths 8, --no-memory -o out",
    "bench plain --lengths 8 --new-tokens 8 --no-memory -o out",
    "bench llama --lengths 16 --new-tokens 1 --no-memory --write -o out",
    "bench plain --lengths 16 --new-tokens 1 --no-memory -d nowhere.jsonl -o out",
    "bench plain --lengths 16 --new-tokens 1 --no-memory --model bert-qa -o out",
    "bench plain --lengths 99999999999999999999k --no-memory -o out",
    "generate plain",
    "generate plain Where ? more",
    "generate bert-qa Where",
    "generate llama Where --model llama",
    "generate plain Where --model bert-qa",
    "push plain user/name",
    "push done user/name",
    "push llama user/name",
    "push nowhere user/name",
    "push done",
    "push done user/name more",
    "tune",
    "tune llama other -d q.jsonl -o out",
    "tune plain -d q.jsonl --calibrate-on train.jsonl -o out",
    "tune llama -d q.jsonl -o out",
    "tune llama -d q.jsonl --calibrate-on q.jsonl -o out",
    "tune llama -d q.jsonl --calibrate-on nowhere.jsonl -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl --attention none -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl --goal v-rows --ffn top-k -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl --layers 7 -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl --kind cross -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl --k 4 -o out",
    "tune llama -d q.jsonl --calibrate-on train.jsonl -o plain",
    "report llama",
    "report plain",
    "report done nowhere",
    "report done -o out.pdf",
    "report done -o llama",
    "report done --format png",
    "plot llama",
    "plot done plain",
    "plot done --prompt",
    "plot done --prompt  -o out",
    "plot done -d q.jsonl --layer 0 --head 99 -o out",
    "plot done -d nowhere.jsonl -o out",
    "plot done -d q.jsonl --model bert-qa -o out",
    "datasets more",
    "datasets --limit 3",
    "methods more",
    "env more",
    "magic",
    "--magic",
)


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


def combinations() -> Iterator[Case]:
    """Options that do not go together."""
    for text in COMBINATIONS:
        arguments = tuple(text.split(" "))
        typed = [part for part in arguments if len(part) > 2 and part not in ("out", "patch", "eval")]
        yield Case(arguments, (*typed, *(part.removeprefix("--") for part in typed), "MODEL", "USER/NAME", "-o"))


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
