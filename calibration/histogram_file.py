"""Histograms on disk, so that thresholds for another k need no second calibration.

One safetensors file. For every module `NAME.rows`, `NAME.counts` and, if they were counted, `NAME.limits` and
`NAME.mass`: bytes that zlib makes of little-endian int32 (int64 where that is too small), most of them zeros. All else
is one JSON text, so that equal histograms make equal bytes. For 32 layers of 32 heads and samples of 2,000 tokens,
where 31 buckets of row lengths occur, it has about 7 MB (208 bytes a head and bucket, measured on SmolLM2-135M with 128
samples); in memory it is 260 MB, however many samples there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import DataError, SparsifyError
from ..patcher.methods.budget import Budget
from ..patcher.recipe import CalibrationRecord, Recipe, save_recipe
from .grid import BINS, BUCKETS, buckets_of
from .histogram import Counts, ScoreHistogram

FORMAT = "hf_sparsify.histograms"
FORMAT_VERSION = 1
HISTOGRAMS_FILE = "histograms.safetensors"
AGAIN = "`sparsify calibrate` makes it anew"

# A file may be a stranger's: what it says of its arrays is checked before memory is taken for them.
MOST = {"heads": 4096, "rows": 2**24}
WIDTHS = {b"4": 4, b"8": 8}
BROKEN = (
    *(SafetensorError, zlib.error, KeyError, TypeError, ValueError, AttributeError, OSError),
    *(OverflowError, RecursionError, MemoryError),
)


def save_histograms(
    histograms: Mapping[str, ScoreHistogram], path: Path, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes histograms by module name in one step, so that a kill leaves the old file or the new one.

    notes: any JSON to be kept beside them. Raises OSError if the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    modules = {}
    for name, histogram in histograms.items():
        modules[name] = {
            "budget": asdict(histogram.budget),
            "placement": histogram.placement,
            "scale": histogram.scale,
            "nature": histogram.nature,
            "rows": len(histogram.rows),
            "heads": next((len(counts) for counts in histogram.counts.values()), 0),
            "buckets": {part: sorted(counts) for part, counts in histogram.parts().items()},
        }
        tensors[f"{name}.rows"] = _packed(histogram.rows)
        for part, counts in histogram.parts().items():
            tensors[f"{name}.{part}"] = _packed(torch.stack([counts[b] for b in sorted(counts)]) if counts else None)
    content = {"format": FORMAT, "version": FORMAT_VERSION, "notes": dict(notes or {}), "modules": modules}
    scratch = path.with_name(f".writing-{path.name}")
    try:
        # Not save_file, whose files no other user may read.
        scratch.write_bytes(save(tensors, metadata={"hf_sparsify": json.dumps(content)}))
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load_histograms(path: Path) -> tuple[dict[str, ScoreHistogram], dict[str, Any]]:
    """The histograms and notes of a file that save_histograms wrote; DataError names the file and what is wrong."""
    try:
        with safe_open(path, framework="pt") as file:
            content = _content(file)
            modules = content["modules"].items()
            return {name: _histogram(file, name, facts) for name, facts in modules}, dict(content["notes"])
    except BROKEN as error:
        raise _unreadable(path, error) from None


def read_notes(path: Path) -> dict[str, Any]:
    """The notes alone, without unpacking a count; raises what load_histograms raises."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(_content(file)["notes"])
    except BROKEN as error:
        raise _unreadable(path, error) from None


def histograms_of(recipe: Recipe, directory: Path) -> dict[str, ScoreHistogram]:
    """What the thresholds of a recipe were fitted on, by module name. DataError if it is not there, is damaged, or
    belongs to another calibration."""
    path, record = directory / HISTOGRAMS_FILE, record_of(recipe, directory)
    if not path.is_file():
        raise DataError(f"{path} is missing: {AGAIN}")
    if file_hash(path) != record.histograms_sha256:
        raise DataError(f"{path} belongs to another calibration than the thresholds beside it: {AGAIN}")
    return load_histograms(path)[0]


def record_of(recipe: Recipe, directory: Path) -> CalibrationRecord:
    """The record of a recipe's calibration; DataError, which names the recipe's directory, if it was not calibrated."""
    if recipe.calibration is None:
        raise DataError(f"the recipe in {directory} was not calibrated: run `sparsify calibrate` first")
    return recipe.calibration


def save_calibrated(recipe: Recipe, histograms: Mapping[str, ScoreHistogram], directory: Path) -> Recipe:
    """Writes a calibrated recipe with the histograms behind it, and returns it with their hash in its record.

    What a kill leaves behind is the old recipe, the new one, or one that loading refuses; histograms beside a recipe
    that they do not belong to are noticed by their hash. SparsifyError if it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as scratch:
            made = Path(scratch) / HISTOGRAMS_FILE
            save_histograms(histograms, made)
            if recipe.calibration is not None:
                recipe = replace(recipe, calibration=replace(recipe.calibration, histograms_sha256=file_hash(made)))
            save_recipe(recipe, directory, force=True)
            os.replace(made, directory / HISTOGRAMS_FILE)
    except OSError as error:
        raise SparsifyError(f"cannot write the recipe to {directory}: {error.strerror or error}") from None
    return recipe


def file_hash(path: Path) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content(file: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((file.metadata() or {}).get("hf_sparsify", "{}"))
    if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
        raise DataError(f"it is not a histogram file of version {FORMAT_VERSION}")
    return content


def _unreadable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is missing: {AGAIN}")
    return DataError(f"{path} cannot be read ({str(error) or type(error).__name__}): {AGAIN}")


def _packed(counts: Tensor | None) -> Tensor:
    """Whole numbers as the bytes of a compressed array, uint8."""
    array = np.zeros(0, np.int64) if counts is None else counts.numpy()
    small = not array.size or int(array.max()) <= np.iinfo(np.int32).max
    kind = b"4" if small else b"8"
    data = kind + zlib.compress(array.astype("<i4" if small else "<i8").tobytes(), 1)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(data: bytes, *shape: int) -> Tensor:
    """The inverse of _packed: int64 of this shape."""
    width = WIDTHS[data[:1]]
    size = width
    for extent in shape:
        size *= extent
    plain = zlib.decompressobj().decompress(data[1:], size + 1)
    if len(plain) != size:
        raise ValueError("an array has another size than it should")
    counts = torch.from_numpy(np.frombuffer(plain, f"<i{width}").astype(np.int64)).view(*shape)
    if bool((counts < 0).any()):
        raise ValueError("a count is negative")
    return counts


def _histogram(file: Any, name: str, facts: dict[str, Any]) -> ScoreHistogram:
    def bytes_of(part: str) -> bytes:
        return bytes(file.get_tensor(f"{name}.{part}").numpy().tobytes())

    def counts_of(part: str) -> Counts:
        buckets = facts["buckets"][part]
        good = isinstance(buckets, list) and all(_is_count(bucket, BUCKETS - 1) for bucket in buckets)
        if not good or buckets != sorted(set(buckets)):
            raise ValueError(f"the buckets of {name} are not ascending whole numbers below {BUCKETS}")
        return dict(zip(buckets, _unpacked(bytes_of(part), len(buckets), facts["heads"], BINS), strict=True))

    for what, most in MOST.items():
        if not _is_count(facts[what], most):
            raise ValueError(f"the number of {what} of {name} is no whole number from 0 to {most}")

    parts = set(facts["buckets"])
    made = ScoreHistogram(
        Budget(**facts["budget"]),
        facts["placement"],
        scale=facts["scale"],
        nature=facts["nature"],
        limits="limits" in parts,
        mass="mass" in parts,
    )
    made.rows = _unpacked(bytes_of("rows"), facts["rows"])
    for part, counts in made.parts().items():
        counts.update(counts_of(part))
    lengths = made.rows.nonzero().flatten()
    for part, counts in made.parts().items():
        counted = lengths[made.budget.rows_k(lengths) < lengths] if part == "limits" else lengths
        if not set(buckets_of(counted).tolist()) <= set(counts):
            raise ValueError(f"{name} has rows without {part}")
    return made


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
