"""Running the console command inside the test process, and what to expect of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify import cli


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Sparsify = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sparsify:
    """A function that runs `sparsify ARGUMENTS`."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sparsify", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return run


def files(folder: Path) -> list[str]:
    """What a command left behind, the questions aside."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("q.jsonl", "train.jsonl"))
    return sorted(str(path.relative_to(folder)) for path in found)


def contents(folder: Path) -> dict[str, bytes]:
    """The same with every byte."""
    return {name: (folder / name).read_bytes() for name in files(folder)}


def content(folder: Path | str) -> dict[str, Any]:
    """What sparsify.json says."""
    made: dict[str, Any] = json.loads((Path(folder) / "sparsify.json").read_text())
    return made


def warnings_of(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("warning: ")]


def refused(done: Done, code: int, sentence: str) -> None:
    """One sentence on stderr beside what the command was doing, nothing on stdout."""
    assert (done.code, done.out) == (code, "")
    doing = ("loading ", "proving ", "calibrating: ", "evaluating: ", "no recipe named: ")
    errors = [line for line in done.err.splitlines() if not line.startswith(doing)]
    assert len(errors) == 1, done.err
    assert errors[0].startswith("error: ")
    assert sentence in errors[0]
