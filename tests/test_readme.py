"""The README's commands and code run as they stand there.

Blocks that follow a line `<!-- run -->` are executed in order, in one empty directory, and have to print what the
README shows, figures aside. `UPDATE_README=1` writes what they print back into the README.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hf_sparsify.cli import app
from hf_sparsify.commands.evaluate import GATE_FAILED
from hf_sparsify.files import write_file
from typer.testing import CliRunner

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"<!-- run -->\n```(console|python)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert {language for language, _ in blocks} == {"console", "python"}
    for language, block in blocks:
        if language == "python":
            done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            printed = "\n".join(_run(line) for line in block.splitlines() if line.startswith("$ "))
            assert _wording(printed) == _wording(block) or os.environ.get("UPDATE_README")
            text = text.replace(block, printed)
    if os.environ.get("UPDATE_README"):
        write_file(README, text.encode())  # in one step, because tests in another process may read it


def _wording(text: str) -> list[str]:
    """The words of a transcript; figures and the widths that follow from them are masked, but what was set is not."""
    words = text.split()
    return [
        word if before == "=" else re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?|─+", "#", word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def _run(line: str) -> str:
    words = shlex.split(line.removeprefix("$ "))
    assert words[0] == "sparsify", line
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code in (0, GATE_FAILED), f"{line}\n{result.output}"
    printed = "\n".join(row.rstrip() for row in result.stdout.splitlines()).strip()
    return f"{line}\n{printed}\n" if printed else line
