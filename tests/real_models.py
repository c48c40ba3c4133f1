"""Where the real models and questions are, and the marks of tests that need them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SQUAD = Path(os.environ.get("SPARSIFY_SQUAD_DIR", "no SPARSIFY_SQUAD_DIR"))

needs_squad = pytest.mark.skipif(
    not (SQUAD / "squad-eval.json").exists(),
    reason="no SQuAD files: set SPARSIFY_SQUAD_DIR to a folder with squad-eval.json and squad-calibration.json",
)


def model_folder(name: str) -> Path:
    return Path(os.environ.get("SPARSIFY_REAL_MODELS", ROOT / "models")) / name


def marks(folder: Path) -> list[Any]:
    """For `pytestmark` of the tests of one model."""
    missing = pytest.mark.skipif(not folder.exists(), reason=f"{folder} is missing: run `make real-models`")
    return [pytest.mark.real, missing]
