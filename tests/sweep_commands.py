"""Sweeps of a tiny model as they are typed, what they wrote, and what their cells were asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.evaluation.tasks.generative import Generative
from hf_sparsify.patcher.meter import Meter

BASE = ("sweep", "llama", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")
ASK = (*BASE, "--keep", "1.0,0.5,0.2", "--calibrate-on", "train.jsonl", "--samples", "4")
TOP_K = (*BASE, "--methods", "top-k", "--keep", "1.0,0.5,0.2")


def document(directory: str = "sparsified-sweep") -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Path(directory, "sweep.json").read_text())
    return made


def cells(directory: str = "sparsified-sweep") -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in document(directory)["cells"]}


def statuses(directory: str = "sparsified-sweep") -> list[str]:
    return [entry["status"] for entry in cells(directory).values()]


class Asked:
    """Counts the batches that each arm answers, and lets one patched pass of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dense = self.patched = 0
        self.failing: int | None = None
        self.error: Exception = RuntimeError("no kernel for this\nand more lines")
        predict = Generative.predict

        def counted(task: Generative, batch: Sequence[Any], meter: Meter | None = None) -> Any:
            if meter is None:
                self.dense += 1
            else:
                self.patched += 1
                if self.patched - 1 == self.failing:
                    raise self.error
            return predict(task, batch, meter)

        monkeypatch.setattr(Generative, "predict", counted)
