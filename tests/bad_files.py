"""Wrong paths, and damaged recipes, models and data files, for the commands that read them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fault_drill import Case
from mutations import mutated, mutated_json

SWEEP = ("--methods", "top-k", "--keep", "0.5", "--max-new-tokens", "2", "--no-cache", "-o", "out")
TUNE = ("--samples", "1", "--keep", "0.5", "--max-new-tokens", "2", "--no-cache", "-o", "out")
EVAL = ("--max-new-tokens", "2", "--no-cache", "-o", "out")
BENCH = ("--lengths", "8", "--repeats", "1", "--new-tokens", "1", "--no-memory", "--no-eager", "-o", "out")
Damage = Callable[[Path], object]
Command = Callable[[str], tuple[str, ...]]

# Paths with nothing that a command could want behind them; those that begin with "bad" are made first.
PATHS = (
    *("nowhere", "./nowhere", "../nowhere/at/all", "/nowhere", "no-org/nothing", "", " ", "~nobody/x", "q.jsonl/below"),
    *("a" * 300, "a/" * 3000, "日本語", "\udcff", "bad\n", "[bold]", "-", "%s", "no\x1b[31m"),
    *("bad-empty", "bad-loop", "bad-dangling", "bad-binary", "/dev/null", "/proc/self", "llama/config.json"),
)
# Where nothing can be written. Root may write to all directories of a disk, and not to these.
NO_PLACE = (
    *("q.jsonl", "q.jsonl/below", "bad-loop", "bad-dangling/below", "/dev/null", "/dev/null/below", "/proc/nowhere"),
    *("a" * 300, "a/" * 3000, "bad-binary", "bad-binary/below", "/proc/self/cmdline/x"),
)
# Option or argument -> the command with a path in its place.
READING: dict[str, Command] = {
    "patch MODEL": lambda path: ("patch", "--no-verify", "-o", "out", "--", path),
    "patch --thresholds": lambda path: ("patch", "-o", "out", f"--thresholds={path}"),
    "inspect TARGET": lambda path: ("inspect", "--lengths", "8", "--", path),
    "validate RECIPE": lambda path: ("validate", "--", path),
    "validate --model": lambda path: ("validate", "plain", f"--model={path}"),
    "calibrate TARGET": lambda path: ("calibrate", "-d", "q.jsonl", "-o", "out", "--", path),
    "calibrate --dataset": lambda path: ("calibrate", "plain", "-o", "out", f"--dataset={path}"),
    "eval TARGET": lambda path: ("eval", "-d", "q.jsonl", *EVAL, "--", path),
    "eval --dataset": lambda path: ("eval", "plain", *EVAL, f"--dataset={path}"),
    "eval squad=FILE": lambda path: ("eval", "plain", *EVAL, f"--dataset=squad={path}"),
    "eval --prompt-template": lambda path: ("eval", "plain", "-d", "q.jsonl", *EVAL, f"--prompt-template={path}"),
    "eval --shots-from": lambda path: ("eval", "plain", "-d", "q.jsonl", *EVAL, "--shots=1", f"--shots-from={path}"),
    "sweep MODEL": lambda path: ("sweep", "-d", "q.jsonl", *SWEEP, "--", path),
    "sweep --dataset": lambda path: ("sweep", "llama", *SWEEP, f"--dataset={path}"),
    "sweep --calibrate-on": lambda path: (
        *("sweep", "llama", "-d", "q.jsonl", *SWEEP, "--methods", "top-theta", f"--calibrate-on={path}"),
    ),
    "tune MODEL": lambda path: ("tune", "-d", "q.jsonl", "--calibrate-on=train.jsonl", *TUNE, "--", path),
    "tune --dataset": lambda path: ("tune", "llama", "--calibrate-on=train.jsonl", *TUNE, f"--dataset={path}"),
    "tune --calibrate-on": lambda path: ("tune", "llama", "-d", "q.jsonl", *TUNE, f"--calibrate-on={path}"),
    "report DIR": lambda path: ("report", "-o", "out.html", "--", path),
    "plot RECIPE": lambda path: ("plot", "-d", "q.jsonl", "-o", "out", "--", path),
    "plot --dataset": lambda path: ("plot", "done", "-o", "out", f"--dataset={path}"),
    "bench TARGET": lambda path: ("bench", *BENCH, "--", path),
    "bench --dataset": lambda path: ("bench", "plain", *BENCH, f"--dataset={path}"),
    "generate TARGET": lambda path: ("generate", "--max-new-tokens", "2", "--", path, "Where ?"),
    "push RECIPE": lambda path: ("push", "--", path, "user/name"),
}
WRITING: dict[str, Command] = {
    "patch": lambda path: ("patch", "llama", "--no-verify", "--force", f"--output-dir={path}"),
    "patch --save-model": lambda path: ("patch", "llama", "--no-verify", "--save-model", f"--output-dir={path}"),
    "calibrate": lambda path: ("calibrate", "plain", "-d", "q.jsonl", "--force", f"--output-dir={path}"),
    "eval": lambda path: ("eval", "plain", "-d", "q.jsonl", *EVAL[:-2], f"--output-dir={path}"),
    "sweep": lambda path: ("sweep", "llama", "-d", "q.jsonl", *SWEEP[:-2], "--force", f"--output-dir={path}"),
    "bench": lambda path: ("bench", "plain", *BENCH[:-2], f"--output-dir={path}"),
    "tune": lambda path: (
        *("tune", "llama", "-d", "q.jsonl", "--calibrate-on=train.jsonl", *TUNE[:-2], f"--output-dir={path}"),
    ),
    "report": lambda path: ("report", "done", f"--output={path}"),
    "report PAGE": lambda path: ("report", "done", f"--output={path}/page.html"),
    "plot": lambda path: ("plot", "done", "-d", "q.jsonl", f"--output-dir={path}"),
}
REPOSITORIES = (
    "",
    " ",
    "a b/c",
    "a/b/c",
    "../x",
    "/etc/passwd",
    "user/",
    "user/" + "a" * 500,
    "é/é",
    "a--b/c..d",
    "x" * 99,
)


def make_paths(folder: Path) -> None:
    """The paths of PATHS and NO_PLACE that have to be there."""
    (folder / "bad-empty").mkdir()
    (folder / "bad-loop").symlink_to("bad-loop")
    (folder / "bad-dangling").symlink_to("bad-nowhere")
    (folder / "bad-binary").write_bytes(bytes(range(256)))


def make_public(folder: Path) -> None:
    """bad/, a recipe for a model that others have too, so that it may be pushed."""
    shutil.copytree(folder / "plain", folder / "bad")
    content = json.loads((folder / "bad" / "sparsify.json").read_text())
    content["base_model"]["id"] = "org/model"
    (folder / "bad" / "sparsify.json").write_text(json.dumps(content))


def path_cases() -> Iterator[Case]:
    """Every place where a path is read or written, with paths that are none."""
    for commands, paths in ((READING, PATHS), (WRITING, NO_PLACE)):
        for what, command in commands.items():
            names = tuple(part for part in what.split() if part != "TARGET")
            for path in paths:
                spelled = (path, path.rstrip("/"), path.removeprefix("./"))
                blank = ("empty", "missing", "holds no recipe", "template .:", "template  :", "no directory  :")
                yield Case(command(path), (*(spelled if path.strip() else blank), *names), make=make_paths)
    for repo in REPOSITORIES:
        yield Case(("push", "bad", repo), ("bad", repo.strip() or "repository"), make=make_public)
    yield Case(("push", "bad", "user/name"), ("bad",), make=make_public)  # nothing can be reached


def recipe_commands(path: str) -> list[tuple[str, ...]]:
    """All commands that read a recipe."""
    return [
        ("inspect", path, "--lengths", "8"),
        ("validate", path, "--no-verify"),
        ("calibrate", path, "-d", "q.jsonl", "-o", "out"),
        ("eval", path, "-d", "q.jsonl", *EVAL),
        ("generate", path, "Where ?", "--max-new-tokens", "2"),
        ("push", path, "user/name"),
        ("plot", path, "-d", "q.jsonl", "-o", "out"),
        ("patch", "--thresholds", path, "--k", "3", "-o", "out"),
    ]


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut(share: float) -> Damage:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def holding(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


WHOLE_FILE: dict[str, Damage] = {
    "gone": gone,
    "a folder": a_folder,
    "a loop": a_loop,
    "a pipe": a_pipe,
    "empty": cut(0),
    "half": cut(0.5),
    "nearly whole": cut(0.98),
    "zeros": holding(bytes(4096)),
    "binary": holding(bytes(range(256)) * 16),
    "other JSON": holding(b"[1, 2]"),
    "no UTF-8": holding(b'{"a": "\xff"}'),
}


def copied(source: str, name: str, damage: Damage) -> Damage:
    """A copy as bad/, with one of its files damaged."""

    def make(folder: Path) -> None:
        shutil.copytree(folder / source, folder / "bad", symlinks=True)
        damage(folder / "bad" / name)

    return make


def json_damage(chance: random.Random) -> Damage:
    """Other values in a file of JSON; the same whenever it is called."""
    seed = chance.random()
    return lambda path: path.write_text(
        mutated_json(random.Random(seed), json.loads(path.read_text())), encoding="utf-8", errors="surrogatepass"
    )


def byte_damage(chance: random.Random) -> Damage:
    """Flipped, cut and spliced bytes; the same whenever it is called."""
    seed = chance.random()

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(mutated(random.Random(seed), data, [data]))

    return damage


def flipped_bit(chance: random.Random) -> Damage:
    """One bit of a file; the same whenever it is called."""
    place, bit = chance.random(), chance.randrange(8)

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        path.write_bytes(data)

    return damage


def recipe_cases(chance: random.Random, each: int) -> Iterator[Case]:
    """Damaged recipes. Most commands do not read the histograms, so damage to them alone is not surely seen."""
    for name in ("sparsify.json", "thresholds.safetensors", "histograms.safetensors"):
        for damage in WHOLE_FILE.values():
            for command in recipe_commands("bad"):
                reads = name != "histograms.safetensors" or "--thresholds" in command
                yield Case(command, ("bad",), reads, copied("done", name, damage))
        for _ in range(each):
            damage = json_damage(chance) if name.endswith(".json") else byte_damage(chance)
            yield Case(chance.choice(recipe_commands("bad")), ("bad",), False, copied("done", name, damage))


# Values that do not send transformers building layers for hours, as a large number of them does.
CONFIG_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    "",
    "x",
    "\x00",
    [],
    {},
    [None],
    {"a": 1},
    "../x",
    1e308,
)


def changed_config(key: str, value: Any) -> Damage:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return damage


def model_commands(path: str) -> list[tuple[str, ...]]:
    """Commands that load a model, with and without the proof."""
    return [
        ("patch", path, "-o", "out"),
        ("patch", path, "--no-verify", "-o", "out"),
        ("eval", path, "-d", "q.jsonl", *EVAL),
        ("validate", "plain", "--model", path, "--no-verify"),
    ]


def model_cases(chance: random.Random, config: dict[str, Any], each: int) -> Iterator[Case]:
    """Damaged model folders. config: the content of the sound config.json."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        for kind, damage in WHOLE_FILE.items():
            if kind != "a pipe":  # which libraries wait for, as cat does
                yield Case(chance.choice(model_commands("bad")), ("bad",), True, copied("llama", name, damage))
        # Not the configuration, where another digit may be a million layers.
        for _ in range(each if name != "config.json" else 0):
            damage = copied("llama", name, byte_damage(chance))
            yield Case(chance.choice(model_commands("bad")), ("bad",), False, damage)
    for key in config:
        for value in chance.sample(CONFIG_VALUES, 4):
            damage = copied("llama", "config.json", changed_config(key, value))
            yield Case(chance.choice(model_commands("bad")), ("bad",), False, damage)
