"""A working directory with a tiny model, recipes and questions, and one drill in it for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_language_models
from fault_drill import PROPERTY, Drill, Tally, run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, bert-qa, q.jsonl and train.jsonl; plain, a top-k recipe; done, a calibrated one that was evaluated."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("llama", "bert-qa"):
        tiny_language_models.save(name, folder / name)
    tiny_language_models.save_questions(folder / "q.jsonl", 2)
    tiny_language_models.save_questions(folder / "train.jsonl", 2, people=7)
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
def drill(world: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drill]:
    """Fails at the end with all that was wrong; the counts go into the report of the test."""
    monkeypatch.chdir(world)
    drill = Drill(world, Tally())
    yield drill
    drill.tidy()
    request.node.user_properties.append((PROPERTY, [dict(column) for column in drill.tally.columns()]))
    text = "\n".join(drill.problems)
    assert not drill.problems, f"{len(drill.problems)} problems\n{text}"
