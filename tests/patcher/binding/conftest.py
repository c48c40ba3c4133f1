"""A saved model, and a copy of it that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_language_models


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_models.save("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))
