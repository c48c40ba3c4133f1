"""A working directory with a tiny model, recipes and questions, and one drill in it for every test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import vl_convert
from disk_faults import TUNE
from fault_drill import PROPERTY, Drill, Tally, run


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """What was drawn once is not drawn again: that takes a second, and in a forked process for ever."""
    with pytest.MonkeyPatch.context() as patching:
        for name in ("javascript_bundle", "vegalite_to_png", "vegalite_to_svg"):
            patching.setattr(vl_convert, name, remembering(getattr(vl_convert, name)))
        yield


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, called once for the same arguments; in a forked process, whatever it gave before."""
    known: dict[str, Any] = {}
    owner = os.getpid()

    def call(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, named))
        if key not in known and known and os.getpid() != owner:
            return next(iter(known.values()))  # times differ from run to run, and so do their charts
        if key not in known:
            known[key] = function(*arguments, **named)
        return known[key]

    return call


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, bert-qa, q.jsonl and train.jsonl; plain, a top-k recipe; done, a calibrated one with results; tuned."""
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
            " ".join((*TUNE, "--keep", "0.5", "-o", "tuned")),
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
