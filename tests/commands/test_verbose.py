"""--verbose: how many calls of the patched modules went to the native kernels, and why the others did not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Done, Sparsify
from hf_sparsify.patcher.kernels.library import native

EVAL = ("eval", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "--json")
GENERATE = ("generate", "sparsified", "Where is Ann ?", "--max-new-tokens", "3", "--json")
MODULES = 2 + 2  # attention and feed-forward layers
USUAL = "torch: no native library" if native() is None else "native"


def calls(done: Done) -> list[dict[str, int]]:
    """What each line says of calls, by the way that they took."""
    assert done.code == 0, done.err
    json.loads(done.out)
    lines = [line.removeprefix("calls: ") for line in done.err.splitlines() if line.startswith("calls: ")]
    found = [[part.split(" ", 1) for part in line.split("; ")] for line in lines]
    return [{way: int(count.replace(",", "")) for count, way in ways} for ways in found]


@pytest.fixture
def mixed(sparsify: Sparsify, work: Path) -> Path:
    """./sparsified for the tiny Llama with sparse attention and feed-forward layers."""
    assert sparsify("patch", "llama", "--k", "4", "--ffn", "top-k", "--ffn-k", "8", "--no-verify").code == 0
    return work / "sparsified"


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("command", [EVAL, GENERATE], ids=["eval", "generate"])
def test_calls_are_told_to_who_asks(command: tuple[str, ...], sparsify: Sparsify) -> None:
    (found,) = calls(sparsify(*command, "--verbose"))
    assert set(found) == {USUAL}
    assert found[USUAL] >= MODULES
    assert found[USUAL] % MODULES == 0
    assert calls(sparsify(*command)) == []


@pytest.mark.usefixtures("mixed")
def test_a_reason_is_told(sparsify: Sparsify) -> None:
    (found,) = calls(sparsify(*GENERATE, "--verbose", "--dtype", "float16"))
    assert "native" not in found
    assert sum(found.values()) >= MODULES


@pytest.mark.usefixtures("mixed")
def test_every_recipe_has_its_line(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--k", "3", "--no-verify", "-o", "three").code == 0
    both, attention_alone = calls(sparsify("eval", "sparsified", "three", *EVAL[1:], "--verbose"))
    assert sum(both.values()) == 2 * sum(attention_alone.values())


@pytest.mark.usefixtures("mixed")
def test_calibration_looks_at_the_scores_in_torch(sparsify: Sparsify) -> None:
    done = sparsify("calibrate", "-d", "q.jsonl", "--samples", "4", "--verbose")
    assert done.code == 0, done.err
    observing, checking = (line for line in done.err.splitlines() if line.startswith("calls: "))
    assert "torch: " in observing
    assert ("calibration looks at the scores" in observing) == (native() is not None)
    assert "calibration" not in checking
