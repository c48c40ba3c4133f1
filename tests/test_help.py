"""What --help says, word for word. After a change: SPARSIFY_UPDATE_GOLDEN=1 pytest tests/test_help.py"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = ("", "patch", "validate", "calibrate", "eval", "bench", "generate", "push", "methods", "datasets", "env")
HEAVY = ("torch", "transformers", "datasets", "evaluate", "numpy", "pyarrow", "safetensors")


def sparsify(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: width and colour are decided when typer is imported."""
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    environment |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    program = f"import sys; from hf_sparsify.cli import main; sys.argv = {['sparsify', *arguments]!r}\n"
    program += "try: main()\n" + (f"finally: {code}\n" if code else "finally: pass\n")
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_said(command: str) -> None:
    shown = sparsify(*([command] if command else []), "--help")
    assert shown.returncode == 0, shown.stderr
    text = "".join(f"{line.rstrip()}\n" for line in shown.stdout.splitlines())
    golden = GOLDEN / f"help{'-' * bool(command)}{command}.txt"
    if os.environ.get("SPARSIFY_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), f"{__doc__}"
    assert "\x1b" not in text


def test_asterisks_of_an_example_are_no_markdown() -> None:
    assert "'re:.*encoder.*=clustered,clusters=50'" in sparsify("patch", "--help").stdout


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("methods", "--help"), ("patch", "--help"), ("oops",)]
)
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    run = sparsify(*arguments, code=f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])")
    assert "HEAVY []" in run.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, hf_sparsify; dir(hf_sparsify); print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
