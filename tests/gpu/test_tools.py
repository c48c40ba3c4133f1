"""Loading over devices, and the commands with --device cuda. Skipped without CUDA."""

from __future__ import annotations

from pathlib import Path

import hf_sparsify
import pytest
import torch
from command_line import Sparsify, runner
from families.every import EVERY
from hf_sparsify.patcher.methods import TopK
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def sparsify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sparsify:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


def test_a_model_that_is_spread_over_devices(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    EVERY["llama"].build().save_pretrained(tmp_path)
    ids = EVERY["llama"].inputs("none")["input_ids"]
    found = []
    for device_map in ("cpu", "auto"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map).eval()
        with hf_sparsify.patch(model, TopK(k=3)), torch.no_grad():
            found.append(model(ids.to(model.device)).logits.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def test_calibrate_and_eval_on_the_gpu(sparsify: Sparsify) -> None:
    for command in (
        ("patch", "demo-t5", "--device", "cuda"),
        ("calibrate", "--samples", "16", "--device", "cuda"),
        ("eval", "--dataset", "demo", "--limit", "16", "--device", "cuda"),
    ):
        done = sparsify(*command)
        assert done.code == 0, done.err
