"""Tests run offline and on one thread, wherever they run, and leave the home directory alone."""

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
os.environ.update({"HF_HOME": tempfile.mkdtemp(prefix="sparsify-tests-")})
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Where there is no GPU, Triton interprets its kernels; it has to know before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import typer.main
from fault_drill import PROPERTY, Tally
from huggingface_hub import constants

torch.set_num_threads(1)

# Families whose dense model older transformers get wrong: Gemma 2 loses its soft-capping, UMT5 sees later tokens.
# A patched model is right there, and unlike its dense self.
RIGHT_SINCE = {"gemma2": (5, 21), "umt5": (5, 18)}
INSTALLED = tuple(int(part) for part in version("transformers").split(".")[:2])


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the rest of the matrix unless it is asked for, whatever else `-m` selects; slow tests come last."""
    if "matrix" not in config.getoption("markexpr"):
        rest = [item for item in items if item.get_closest_marker("matrix")]
        items[:] = [item for item in items if not item.get_closest_marker("matrix")]
        config.hook.pytest_deselected(items=rest)
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    for item in items:
        parameters = str(item.callspec.params) if hasattr(item, "callspec") else ""
        for family, first in RIGHT_SINCE.items():
            if f"'{family}'" in parameters and first > INSTALLED:
                item.add_marker(
                    pytest.mark.skip(reason=f"{family} itself is wrong before transformers {first[0]}.{first[1]}")
                )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The counts of the fault drill: reports come here from every process that runs tests."""
    tally = Tally()
    for report in itertools.chain(*terminalreporter.stats.values()):
        for name, columns in getattr(report, "user_properties", ()):
            if name == PROPERTY:
                tally.add(columns)
    if tally.tried:
        terminalreporter.section(PROPERTY)
        for line in tally.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once() -> Iterator[None]:
    """A process of its own builds all commands for the one that it runs, and takes longer for that than to refuse."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def hugging_face_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test, also in the processes that it starts: no dense answers are there yet."""
    home = tmp_path / "hugging-face-home"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home))
    return home


@pytest.fixture
def valid_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are held against the schema of Vega-Lite, for which the commands have no time."""
    import altair

    to_dict = altair.TopLevelMixin.to_dict

    def checked(chart: Any, validate: bool = True, *, context: Any = None, **more: Any) -> Any:
        """A part of a chart comes with a context, and is no whole one."""
        return to_dict(chart, validate or not context, context=context, **more)

    monkeypatch.setattr(altair.TopLevelMixin, "to_dict", checked)
