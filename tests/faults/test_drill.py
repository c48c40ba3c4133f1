"""The drill notices a traceback, a file that is gone or new, a wrong message, and bad input that is taken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_drill import Case, Drill, Tally
from hf_sparsify import cli


def refusing(message: str, act: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """A command that does something and then ends with exit code 1."""

    def main() -> None:
        act()
        print(message, file=sys.stderr)
        sys.exit(1)

    return main


def breaking() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("main", "problem", "counts"),
    [
        (refusing("error: no x here"), "", (1, 1, 0, 0)),
        (breaking, "KeyError: 'x'", (1, 0, 1, 0)),
        (refusing("Traceback (most recent call last): x"), "Traceback", (1, 1, 1, 0)),
        (refusing("error: nothing"), "none of ('x',) in", (1, 1, 0, 0)),
        (lambda: sys.exit(0), "was taken", (1, 0, 0, 0)),
        (lambda: sys.exit(7), "exit code 7", (1, 0, 0, 0)),
        (refusing("error: x", lambda: Path("file").unlink()), "changed ['file']", (1, 1, 0, 1)),
        (refusing("error: x", lambda: Path("file").write_text("other")), "changed ['file']", (1, 1, 0, 1)),
        (refusing("error: x", lambda: Path("bad").unlink()), "changed ['bad']", (1, 1, 0, 1)),
        (refusing("error: x", lambda: Path("out").write_text("")), "left ['out']", (1, 1, 0, 0)),
        (refusing("error: x", lambda: print("half a result")), "wrote to stdout", (1, 1, 0, 0)),
    ],
)
def test_what_is_noticed(
    main: Callable[[], None],
    problem: str,
    counts: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("file").write_text("old")
    drill = Drill(folder, Tally())
    monkeypatch.setattr(cli, "main", main)
    drill.check("kind", Case(("eval",), ("x",), make=lambda place: (place / "bad").write_text("")))
    assert [problem in found for found in drill.problems] == ([True] if problem else [])
    assert tuple(column["kind"] for column in drill.tally.columns()) == counts
    assert not Path("bad").exists()
    assert not Path("out").exists()
