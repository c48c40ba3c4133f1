"""The installed package: its names, its version, its console commands, its layout."""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from pathlib import Path

import hf_sparsify
import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", hf_sparsify.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(hf_sparsify, name).__doc__
    assert name in dir(hf_sparsify)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="'hf_sparsify' has no attribute 'nothing'"):
        _ = hf_sparsify.nothing


def test_public_names_and_their_homes_agree() -> None:
    assert sorted(hf_sparsify._HOME_OF) == sorted(hf_sparsify.__all__) == list(hf_sparsify.__all__)


def test_console_commands() -> None:
    scripts = {entry.name: entry for entry in metadata.entry_points(group="console_scripts")}
    assert scripts["sparsify"].value == scripts["hf-sparsify"].value == "hf_sparsify.cli:main"
    assert scripts["sparsify"].load() is import_module("hf_sparsify.cli").main


def test_every_package_folder_is_installed() -> None:
    """A folder that setuptools is not told about would be missing from the wheel."""
    skipped = {"tests", "build", "dist", "examples", "docs", "csrc"}
    found = {
        ".".join(["hf_sparsify", *folder.relative_to(ROOT).parts])
        for file in ROOT.rglob("*.py")
        if (folder := file.parent) != ROOT
        and not skipped & set(folder.relative_to(ROOT).parts)
        and not any(part.startswith(".") for part in folder.relative_to(ROOT).parts)
        and not any((parent / "pyvenv.cfg").exists() for parent in file.parents)
    }
    assert found | {"hf_sparsify"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(hf_sparsify.__file__).parent / "py.typed").exists()
