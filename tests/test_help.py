"""What --help says, word for word. After a change: SPARSIFY_UPDATE_GOLDEN=1 pytest tests/test_help.py"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = (
    *("", "patch", "inspect", "validate", "calibrate", "eval", "sweep", "tune", "bench", "generate", "push"),
    *("report", "plot"),
    *("methods", "datasets", "env"),
)
HEAVY = ("torch", "transformers", "datasets", "evaluate", "numpy", "pyarrow", "safetensors", "altair", "vl_convert")


# Every page is printed after a line that names it.
PAGES = f"""
import sys
from hf_sparsify.cli import main
for command in {COMMANDS}:
    print("== " + command)
    sys.argv = ["sparsify", *([command] if command else []), "--help"]
    try: main()
    except SystemExit as end: assert not end.code, command
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: width and colour are decided when typer is imported."""
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    environment |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """What --help prints, by command; one process for all."""
    shown = python(PAGES)
    assert shown.returncode == 0, shown.stderr
    parts = (page.partition("\n") for page in shown.stdout.split("== ")[1:])
    return {command: text for command, _, text in parts}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_said(command: str, pages: dict[str, str]) -> None:
    text = "".join(f"{line.rstrip()}\n" for line in pages[command].splitlines())
    golden = GOLDEN / f"help{'-' * bool(command)}{command}.txt"
    if os.environ.get("SPARSIFY_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), f"{__doc__}"
    assert "\x1b" not in text


def test_asterisks_of_an_example_are_no_markdown(pages: dict[str, str]) -> None:
    assert "'re:.*encoder.*=clustered,clusters=50'" in pages["patch"]


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("methods", "--help"), ("patch", "--help"), ("oops",)]
)
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = f"import sys; from hf_sparsify.cli import main; sys.argv = {['sparsify', *arguments]!r}\n"
    program += f"try: main()\nfinally: print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    assert "HEAVY []" in python(program).stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, hf_sparsify; dir(hf_sparsify); print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
