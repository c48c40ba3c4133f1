"""The built wheel, used from an empty directory without the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_evaluates_the_demo_from_an_empty_directory(tmp_path: Path) -> None:
    wheels, installed, empty = tmp_path / "wheels", tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    # From a copy, because setuptools would reuse what an earlier build left in the source tree.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "models", "*.egg-info", "__pycache__"))
    # What is in the wheel matters here and not how fast it is; the compiler takes a minute to optimise.
    native = source / "csrc" / "build_native.py"
    native.write_text(native.read_text(encoding="utf-8").replace('"-O3"', '"-O0"'), encoding="utf-8")
    _python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source), cwd=tmp_path)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("hf_sparsify/", "hf_sparsify-", "hf_sparsify.")) for name in names)
    assert not [name for name in names if "/tests/" in name or "/examples/" in name or name.endswith("setup.py")]
    for package in ("benchmark", "patcher/kernels"):
        assert {f"hf_sparsify/{package}/{path.name}" for path in (ROOT / package).glob("*.py")} <= {*names}
    _python("-m", "pip", "install", "--no-deps", "--target", str(installed), str(wheel), cwd=tmp_path)

    # Ahead of the editable install that the other tests use.
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    where = _python("-c", "import hf_sparsify; print(hf_sparsify.__file__)", cwd=empty, env=environment)
    assert Path(where.strip()).is_relative_to(installed)
    command = [str(installed / "bin" / "sparsify"), "eval", "demo-t5", "--dataset", "demo", "--limit", "8", "--json"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["dataset"]["items"] == 8
    assert results["scores"]["dense"]["exact_match"] > 50


def _python(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
