"""Versions and hardware."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import pytest
import torch
from hf_sparsify.environment import describe_environment, package_versions
from hf_sparsify.patcher.kernels import triton_library


def test_versions_are_the_installed_ones() -> None:
    found = package_versions()
    assert found["hf-sparsify"] == metadata.version("hf-sparsify")
    assert found["torch"] == metadata.version("torch")
    assert next(iter(found)) == "hf-sparsify"


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_datasets(name: str) -> str:
        if name == "datasets":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_datasets)
    assert "datasets" not in package_versions()
    assert "torch" in package_versions()


def test_description_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = describe_environment()
    assert found["cuda"].startswith("not available")
    assert {"python", "torch", "platform", "processor", "cpu capability", "mps"} <= set(found)
    assert all(isinstance(value, str) and value and "\n" not in value for value in found.values())


def test_description_says_what_runs_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "attention kernels on a GPU"
    if find_spec("triton") is not None:
        assert describe_environment()[key] == f"Triton {metadata.version('triton')}"
    monkeypatch.setattr(triton_library, "obstacle", lambda: "SPARSIFY_TRITON is 0")
    assert describe_environment()[key] == "torch, because SPARSIFY_TRITON is 0"


# Of a process of its own, as if Triton were not installed. The model runs on the CPU.
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import hf_sparsify, torch, transformers
from hf_sparsify import TopK, TopKFeedForward
from hf_sparsify.environment import describe_environment
from hf_sparsify.patcher.kernels import feed_forward, feed_forward_kernel_of, kernel_of

sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
config = transformers.LlamaConfig(vocab_size=97, intermediate_size=40, **sizes)
model = transformers.LlamaForCausalLM(config).eval()
hf_sparsify.patch(model, TopK(k=4), TopKFeedForward(k=4))
with torch.no_grad():
    model(torch.arange(12)[None])
assert kernel_of(TopK(k=2), "cuda") is None and feed_forward_kernel_of("cuda") is feed_forward
print(describe_environment()["attention kernels on a GPU"])
"""

# transformers itself may import Triton; we do not, before there is a call on a GPU.
UNASKED = """
import sys
import hf_sparsify
from hf_sparsify import TopK
from hf_sparsify.patcher.kernels import feed_forward_kernel_of, kernel_of

assert kernel_of(TopK(k=2), "cpu") and feed_forward_kernel_of("cpu")
print([name for name in sys.modules if name.partition(".")[0] == "triton"])
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_without_triton_a_cpu_works_and_a_gpu_runs_torch() -> None:
    assert run(WITHOUT_TRITON) == "torch, because Triton is not installed"


@pytest.mark.slow
def test_triton_is_not_imported_unasked() -> None:
    assert run(UNASKED) == "[]"


def test_description_names_every_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Imaginary 9", 48 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    found = describe_environment()
    assert found["cuda:0"] == found["cuda:1"] == "Imaginary 9, 48 GiB"
