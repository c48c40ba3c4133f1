"""Weights that hold NaN: every command says that the dense model is broken, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_language_models
from command_line import Sparsify, refused
from safetensors.torch import load_file, save_file

BROKEN = {
    "llama": "model.layers.0.mlp.up_proj.weight",
    "t5": "decoder.block.0.layer.2.DenseReluDense.wo.weight",
    "bert-qa": "bert.encoder.layer.0.output.dense.weight",
}
COMMANDS = {
    "patch": ("patch", "broken", "-o", "proven"),
    "validate": ("validate", "sparsified"),
    "calibrate": ("calibrate", "sparsified", "--dataset", "q.jsonl"),
    "eval": ("eval", "sparsified", "--dataset", "q.jsonl"),
    "bench": ("bench", "sparsified", "--lengths", "32", "--new-tokens", "2", "--repeats", "1", "--no-memory"),
    "generate": ("generate", "sparsified", "Where is Ann ?"),
}
CASES = [(name, command) for name in BROKEN for command in COMMANDS if (name, command) != ("bert-qa", "generate")]


@pytest.fixture
def broken(request: pytest.FixtureRequest, work: Path, sparsify: Sparsify) -> str:
    """./broken, a model with a NaN, and ./sparsified for it; the name of the parameter."""
    name: str = request.param
    weights = tiny_language_models.save(name, work / "broken") / "model.safetensors"
    tensors = load_file(weights)
    tensors[BROKEN[name]].view(-1)[3] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert sparsify("patch", "broken", "--k", "4", "--no-verify").code == 0
    return BROKEN[name]


@pytest.mark.parametrize(("broken", "command"), CASES, indirect=["broken"])
def test_the_dense_model_is_blamed(
    broken: str, command: str, sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # bench warns of a busy machine
    done = sparsify(*COMMANDS[command])
    refused(done, 1, "the dense model itself gives numbers that are not finite")
    assert f"broken has NaN or infinities in {broken}: fetch or save its weights again" in done.err
