"""Tests run offline and on one thread, wherever they run, and leave the home directory alone."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
os.environ.update({"HF_HOME": tempfile.mkdtemp(prefix="sparsify-tests-")})
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from huggingface_hub import constants

torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def hugging_face_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test, also in the processes that it starts: no dense answers are there yet."""
    home = tmp_path / "hugging-face-home"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home))
    return home
