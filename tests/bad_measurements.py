"""Damaged sweeps, tuned recipes, evaluations and benchmarks, for the report that shows them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import bad_files
from fault_drill import Case, run

ASK = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "--no-cache")
REPORT = ("report", "bad", "-o", "out.html")
CELL, BENCH = "recipes/top-k-keep-0.2", "bench/now/bench.json"


def make(folder: Path) -> None:
    """Makes swept/, whose second cell was timed, in the working directory."""
    recipe = f"swept/{CELL}"
    for command in (
        ("sweep", "llama", *ASK, "--methods", "top-k", "--keep", "0.5,0.2", "-o", "swept"),
        ("bench", recipe, *bad_files.BENCH[:-1], str(Path(recipe, BENCH).parent)),
    ):
        ended = run(*command)
        assert ended.code == 0, ended
    place = folder / "swept" / "sweep.json"
    written = json.loads(place.read_text())
    written["cells"][1]["bench"] = f"{CELL}/{BENCH}"
    place.write_text(json.dumps(written))


def cases(chance: random.Random, folder: Path, each: int) -> Iterator[Case]:
    """Each file that a report reads, damaged. Files that a search names are left out, and not surely refused."""
    [results] = (folder / "swept" / CELL).glob("eval/*/results.json")
    for source, name in (
        ("swept", "sweep.json"),
        ("swept", f"{CELL}/{BENCH}"),
        (f"swept/{CELL}", str(results.relative_to(folder / "swept" / CELL))),
        (f"swept/{CELL}", BENCH),
        ("tuned", "tune/tune.json"),
        ("tuned", "tune/sensitivity.json"),
    ):
        surely = name.endswith(("sweep.json", "tune.json"))
        for kind, damage in bad_files.WHOLE_FILE.items():
            yield Case(REPORT, ("bad",), surely and kind != "gone", bad_files.copied(source, name, damage))
        for _ in range(each):
            yield Case(REPORT, ("bad",), False, bad_files.copied(source, name, bad_files.json_damage(chance)))
