"""A working directory with a tiny model, recipes and questions, and the counts of the whole session at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_language_models
from fault_drill import Drill, Tally, run

TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, bert-qa and q.jsonl; plain, a top-k recipe; done, a calibrated one that was evaluated."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("llama", "bert-qa"):
        tiny_language_models.save(name, folder / name)
    tiny_language_models.save_questions(folder / "q.jsonl", 2)
    here = os.getcwd()
    os.chdir(folder)
    try:
        for command in (
            "patch llama --k 4 --no-verify -o plain",
            "patch llama --k 4 --no-verify -o done",
            "calibrate done -d q.jsonl",
            "eval done -d q.jsonl --max-new-tokens 2 --max-drop 100 --no-cache",
        ):
            ended = run(*command.split())
            assert ended.code == 0, ended
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def drill(world: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drill]:
    """Fails at the end with all that was wrong."""
    monkeypatch.chdir(world)
    drill = Drill(world, pytestconfig.stash.setdefault(TALLY, Tally()))
    yield drill
    drill.tidy()
    text = "\n".join(drill.problems)
    assert not drill.problems, f"{len(drill.problems)} problems\n{text}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash.get(TALLY, None)
    if tally is not None:
        terminalreporter.section("fault drill")
        for line in tally.lines():
            terminalreporter.write_line(line)
