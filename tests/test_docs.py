"""The Python blocks of docs/in-python.md run one after the other, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "in-python.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
CLAIMS = """
assert dense_tokens.tolist() == merged.generate(**inputs, max_new_tokens=4).tolist()
assert 0 < kept < 0.2
"""


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 6
    script = "\n".join([*blocks, CLAIMS])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
