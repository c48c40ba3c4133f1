"""Histograms on disk: the same come back, equal ones make equal bytes, and damage is named."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_sparsify.calibration.grid import BINS, BUCKETS
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.calibration.histogram_file import (
    HISTOGRAMS_FILE,
    histograms_of,
    load_histograms,
    read_notes,
    save_histograms,
)
from hf_sparsify.errors import DataError
from hf_sparsify.files import sha256
from hf_sparsify.patcher.methods import TopTheta
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.recipe import BaseModel, CalibrationRecord, Recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_chunks import chunk, observed, random, same


def made() -> dict[str, ScoreHistogram]:
    chunks = [chunk(random(seed, queries=30 + 9 * seed)) for seed in range(3)]
    return {
        "a.attn": observed(Budget(k=4, protect_first=1), chunks, scale=0.5, nature="causal self-attention"),
        "b.attn": observed(Budget(keep=0.1, compensation="sdc"), chunks, "max-relative", limits=True, mass=True),
        "c.attn": ScoreHistogram(Budget(k=4), limits=True),
    }


def test_the_same_come_back(tmp_path: Path) -> None:
    histograms = made()
    save_histograms(histograms, tmp_path / "file", {"items": ["1", "2"]})
    loaded, notes = load_histograms(tmp_path / "file")
    assert notes == {"items": ["1", "2"]}
    assert list(loaded) == list(histograms)
    assert all(same(loaded[name], histogram) for name, histogram in histograms.items())
    save_histograms(loaded, tmp_path / "again", notes)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "file"]


def test_large_counts(tmp_path: Path) -> None:
    histograms = made()
    for counts in histograms["a.attn"].counts.values():
        counts *= 2**40
    save_histograms(histograms, tmp_path / "file")
    assert same(load_histograms(tmp_path / "file")[0]["a.attn"], histograms["a.attn"])


def test_it_is_small(tmp_path: Path) -> None:
    histogram = observed(Budget(k=4), [chunk(random(seed)) for seed in range(9)])
    save_histograms({"a": histogram}, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size < 400 * 3 * len(histogram.counts)


def damaged(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-700])
    elif how == "other":
        save_file({"a": torch.zeros(2)}, path)
    else:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if how == "tensor gone":
            del tensors["a.attn.counts"]
        elif how == "bytes":
            tensors["a.attn.counts"] = tensors["a.attn.counts"].flip(0)
        elif how == "rows":
            metadata["hf_sparsify"] = metadata["hf_sparsify"].replace('"heads": 3', '"heads": 2')
        elif how == "buckets":
            metadata["hf_sparsify"] = metadata["hf_sparsify"].replace('"counts": [', '"counts": [99, ')
        save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("how", ["missing", "cut", "other", "tensor gone", "bytes", "rows", "buckets"])
def test_damage_is_named(how: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_histograms(made(), path)
    damaged(path, how)
    with pytest.raises(DataError, match=r"file .*`sparsify calibrate` makes it anew"):
        load_histograms(path)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        *(("rows", value) for value in (-1, 10**30, 2**24 + 1, True, 2.0, "9", None)),
        *(("heads", value) for value in (-3, 10**30, 4097, True, 3.0)),
        *(("buckets", value) for value in ([3, 3], [4, 3], [-1], [BUCKETS], [True], [10**30], "34", {"3": 1}, 3)),
        ("width", b"-"),
        ("width", b"1"),
        ("width", b"2"),
        ("limits", [1]),
        ("mass", [1]),
    ],
)
def test_a_strangers_file_is_checked(what: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_histograms(made(), path)
    tensors, content = parts(path)
    facts = content["modules"]["b.attn"]
    if what == "width":
        tensors["b.attn.rows"] = torch.frombuffer(
            bytearray(value + zlib.compress(bytes(8 * facts["rows"]))), dtype=torch.uint8
        )
    elif what in ("limits", "mass"):
        facts["buckets"][what] = value
        empty = zlib.compress(bytes(4 * len(value) * facts["heads"] * BINS))
        tensors[f"b.attn.{what}"] = torch.frombuffer(bytearray(b"4" + empty), dtype=torch.uint8)
    elif what == "buckets":
        facts[what]["counts"] = value
    else:
        facts[what] = value
    save_file(tensors, path, metadata={"hf_sparsify": json.dumps(content)})
    with pytest.raises(DataError, match=r"file cannot be read .*`sparsify calibrate` makes it anew"):
        load_histograms(path)


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    save_histograms(made(), path)
    tensors, content = parts(path)
    content["modules"]["a.attn"]["rows"] = -1
    packed = b"1" + zlib.compress(bytes(2**26), 9)
    tensors["a.attn.rows"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    save_file(tensors, path, metadata={"hf_sparsify": json.dumps(content)})
    tracemalloc.start()
    with pytest.raises(DataError):
        load_histograms(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    ("rows", "heads", "said"), [(2**24, 4096, r"take more than 4 GiB"), (5, 4096, "an array takes more than 256 MiB")]
)
def test_what_is_said_of_arrays_is_bounded(rows: int, heads: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_histograms(made(), path)
    tensors, content = parts(path)
    facts = content["modules"]["a.attn"]
    names = [f"m{number}" for number in range(4 if rows > 5 else 1)]
    facts |= {"rows": rows if rows > 5 else facts["rows"], "heads": heads, "buckets": {"counts": [*range(40)]}}
    content["modules"] = dict.fromkeys(names, facts)
    tensors = {f"{name}.{part}": tensors[f"a.attn.{part}"].clone() for name in names for part in ("rows", "counts")}
    save_file(tensors, path, metadata={"hf_sparsify": json.dumps(content)})
    tracemalloc.start()
    with pytest.raises(DataError, match=said):
        load_histograms(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '"text"', "1" * 5000])
@pytest.mark.parametrize("read", [load_histograms, read_notes])
def test_metadata_that_is_nothing_of_the_kind(text: str, read: Any, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "file", metadata={"hf_sparsify": text})
    with pytest.raises(DataError, match="`sparsify calibrate` makes it anew"):
        read(tmp_path / "file")


def test_no_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_histograms(made(), tmp_path / "file")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hf_sparsify.calibration.histogram_file._histogram", full)
    with pytest.raises(DataError, match="file cannot be read"):
        load_histograms(tmp_path / "file")


def test_notes_alone_can_be_read(tmp_path: Path) -> None:
    save_histograms(made(), tmp_path / "file", {"key": "a"})
    assert read_notes(tmp_path / "file") == {"key": "a"}
    with pytest.raises(DataError, match="is missing"):
        read_notes(tmp_path / "nowhere")


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON of a file."""
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["hf_sparsify"])


def test_those_of_another_calibration_are_noticed(tmp_path: Path) -> None:
    save_histograms(made(), tmp_path / HISTOGRAMS_FILE)
    record = CalibrationRecord("squad", "train", "f", 3, 0, "k = 4")
    record = replace(record, histograms_sha256=sha256((tmp_path / HISTOGRAMS_FILE).read_bytes()))
    recipe = Recipe(BaseModel("m", "t", "llama", "h"), {"a.attn": TopTheta(k=4)}, calibration=record)
    assert set(histograms_of(recipe, tmp_path)) == set(made())
    with pytest.raises(DataError, match="belongs to another calibration"):
        histograms_of(replace(recipe, calibration=replace(record, histograms_sha256="0")), tmp_path)
    with pytest.raises(DataError, match="was not calibrated"):
        histograms_of(replace(recipe, calibration=None), tmp_path)
    with pytest.raises(DataError, match="is missing"):
        histograms_of(recipe, tmp_path / "elsewhere")
