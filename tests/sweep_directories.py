"""Sweep directories, tuned recipes and benchmarks, made of real evaluations of a demo model."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify import cli

KEEPS = (1.0, 0.1, 0.02)
LAYERS = 4
MAX_DROP = "90"  # so much that a dozen items are enough to pass, whatever flips


def run(*arguments: str | Path) -> None:
    """`sparsify ARGUMENTS` in this process; what it prints is dropped."""
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["sparsify", *map(str, arguments)])
        with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as caught:
            cli.main()
    logging.getLogger().handlers[:] = handlers
    assert caught.value.code in (None, 0, 3), said.getvalue()


def make_sweep(directory: Path, *, limit: int = 12) -> Path:
    """A sweep of top-k attention over demo-llama that recommends the sparsest recipe, some of whose answers flipped."""
    cells = [_evaluated(directory, keep, limit) for keep in KEEPS]
    passed = [cell for cell in cells if cell["verdict"]["decision"] == "PASS"]
    results = json.loads((directory / cells[0]["results"]).read_text())
    written = {
        "schema_version": 1,
        "kind": "sweep",
        "command": "sparsify sweep demo-llama",
        "ended": True,
        **{name: results[name] for name in ("base_model", "task", "dataset", "versions", "environment", "limit")},
        "gate": {"max_drop": float(MAX_DROP), "min_recovery": None, "margin": results["verdict"]["margin"]},
        "seed": 0,
        "calibration": None,
        "cells": cells,
        "chains": [{"name": "top-k", "level": 0.025, "cells": [cell["name"] for cell in cells]}],
        "recommended": (passed and {"cell": passed[-1]["name"], "reason": "the largest saving that passed"}) or None,
    }
    (directory / "sweep.json").write_text(json.dumps(written))
    return directory


def make_tuned(directory: Path, sweep: Path) -> Path:
    """A tuned recipe with the cells of a sweep and made-up sensitivities."""
    written = json.loads((sweep / "sweep.json").read_text())
    written |= {"kind": "tune", "goal": "kept", "sensitivity": "sensitivity.json", "budgets": [0.5]}
    written["comparison"] = {"sentence": "Tuned layer by layer it saves more than one keep for all."}
    place = directory / "tune"
    shutil.copytree(sweep / "recipes", place / "recipes")
    (place / "tune.json").write_text(json.dumps(written))
    (place / "sensitivity.json").write_text(json.dumps(sensitivity()))
    return directory


def sensitivity() -> dict[str, Any]:
    """The error of every layer is twice that of the layer before, and none where all is kept."""
    keeps = [1.0, 0.5, 0.1]
    modules = {
        f"model.layers.{layer}.self_attn": {"error": [0.0, 0.001 * 2**layer, 0.01 * 2**layer], "layer": layer}
        for layer in range(LAYERS)
    }
    about = "relative squared error of the module's output"
    return {"schema_version": 1, "items": 8, "keeps": keeps, "error_is": about, "modules": modules}


def make_bench(recipe: Path) -> Path:
    """A short benchmark of a recipe."""
    place = recipe / "bench" / "20260101-000000"
    run("bench", recipe, "--lengths", "16,24", "--new-tokens", "4", "--repeats", "2", "--no-memory", "-o", place)
    return place / "bench.json"


def _evaluated(directory: Path, keep: float, limit: int) -> dict[str, Any]:
    name = f"top-k-keep-{keep}"
    recipe = directory / "recipes" / name
    run("patch", "demo-llama", "--keep", str(keep), "--no-verify", "-o", recipe)
    run("eval", recipe, "--dataset", "demo", "--limit", str(limit), "--max-drop", MAX_DROP)
    (place,) = recipe.glob("eval/*/results.json")
    results = json.loads(place.read_text())
    verdict = {name: results["verdict"][name] for name in ("decision", "p", "reason")}
    return {
        "name": name,
        "label": f"top-k, keep = {keep}",
        "chain": "top-k",
        "directory": f"recipes/{name}",
        "setting": {"method": "top-k", "keep": keep, "k": None, "clusters": None, "ffn_keep": None},
        "status": "done",
        "error": None,
        "bench": None,
        "recalibrated": False,
        "kept_per_k": None,
        "results": str(place.relative_to(directory)),
        "saved": {"share": 1 - results["kept"]["total"]["kept_share"], "of": "attention elements"},
        "verdict": {**verdict, "level": 0.025},
    }
