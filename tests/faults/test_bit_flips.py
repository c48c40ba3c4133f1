"""One bit of a finished recipe, or of an evaluation in it, is another: no command breaks, and none makes it worse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import bad_files
from fault_drill import Case, Drill

EACH = 24  # flips of a file


def commands(name: str) -> list[tuple[str, ...]]:
    """Those that read a file of a recipe."""
    if name.startswith("eval/"):
        ask = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100")
        return [("eval", "bad", *ask), ("push", "bad", "me/it")]
    if name == "histograms.safetensors":
        return [("patch", "--thresholds", "bad", "--k", "3", "-o", "out")]
    return [*bad_files.recipe_commands("bad"), ("bench", "bad", *bad_files.BENCH)]


def flips(chance: random.Random, recipe: Path) -> Iterator[Case]:
    names = sorted(str(path.relative_to(recipe)) for path in recipe.rglob("*") if path.is_file())
    assert len(names) == 5, names
    for name in names:
        for _ in range(EACH):
            for command in chance.sample(commands(name), min(2, len(commands(name)))):
                damage = bad_files.copied("done", name, bad_files.flipped_bit(chance))
                yield Case(command, ("bad",), False, damage)


def test_flipped_bits(drill: Drill) -> None:
    for case in flips(random.Random(5), drill.folder / "done"):
        drill.check("flipped bits", case)


def test_other_values_in_results(drill: Drill) -> None:
    """Where a flip may hit a digit, a person may have put anything."""
    chance = random.Random(6)
    [results] = (drill.folder / "done" / "eval").glob("*/results.json")
    name = str(results.relative_to(drill.folder / "done"))
    for _ in range(60):
        damage = bad_files.copied("done", name, bad_files.json_damage(chance))
        for command in commands(name):
            drill.check("damaged results", Case(command, ("bad",), False, damage))
