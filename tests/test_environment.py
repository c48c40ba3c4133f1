"""Versions and hardware."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from hf_sparsify.environment import describe_environment, package_versions


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


def test_description_names_every_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Imaginary 9", 48 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    found = describe_environment()
    assert found["cuda:0"] == found["cuda:1"] == "Imaginary 9, 48 GiB"
