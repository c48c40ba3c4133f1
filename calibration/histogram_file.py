"""Histograms on disk, so that thresholds for another k need no second calibration.

One safetensors file. For every module `NAME.rows`, `NAME.counts` and, if they were counted, `NAME.limits` and
`NAME.mass`: bytes that zlib makes of little-endian int32 (int64 where that is too small), most of them zeros. All else
is one JSON text, so that equal histograms make equal bytes. For 32 layers of 32 heads and samples of 2,000 tokens,
where 31 buckets of row lengths occur, it has about 7 MB (208 bytes a head and bucket, measured on SmolLM2-135M with 128
samples); in memory it is 260 MB, however many samples there are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import locked, read_file, read_member, sha256, write_file
from ..patcher.methods.budget import Budget
from ..patcher.recipe import CalibrationRecord, Recipe, save_recipe
from ..patcher.tensor_file import MALFORMED, read_content, read_tensors, reason, tensor_bytes
from ..strict_json import check_texts
from .grid import BINS, BUCKETS, buckets_of
from .histogram import Counts, ScoreHistogram

FORMAT = "hf_sparsify.histograms"
FORMAT_VERSION = 1
HISTOGRAMS_FILE = "histograms.safetensors"
AGAIN = "`sparsify calibrate` makes it anew"

# A file may be a stranger's: what it says of its arrays is checked before memory is taken for them.
MOST = {"heads": 4096, "rows": 2**24}
MOST_BYTES = 2**28  # of a file, and of one array
MOST_UNPACKED = 2**32  # of all arrays of a file
WIDTHS = {b"4": 4, b"8": 8}
BROKEN = (zlib.error, *MALFORMED)


def save_histograms(
    histograms: Mapping[str, ScoreHistogram], path: Path, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes histogram_bytes in one step, so that a kill leaves the old file or the new one. OSError if it fails."""
    write_file(path, histogram_bytes(histograms, notes))


def histogram_bytes(histograms: Mapping[str, ScoreHistogram], notes: Mapping[str, Any] | None = None) -> bytes:
    """The file of histograms by module name. notes: any JSON to be kept beside them."""
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
    return tensor_bytes(tensors, content)


def load_histograms(path: Path) -> tuple[dict[str, ScoreHistogram], dict[str, Any]]:
    """The histograms and notes of a file that save_histograms wrote; DataError names the file and what is wrong."""
    return parse_histograms(_bytes_of(path), path)


def parse_histograms(data: bytes, path: Path) -> tuple[dict[str, ScoreHistogram], dict[str, Any]]:
    """The same from the bytes of a file."""
    try:
        content, tensors = _content(data), read_tensors(data)
        check_texts(content["modules"])
        modules = content["modules"].items()
        if sum(_size(name, facts) for name, facts in modules) > MOST_UNPACKED:
            raise ValueError(f"its counts take more than {MOST_UNPACKED >> 30} GiB")
        return {name: _histogram(tensors, name, facts) for name, facts in modules}, dict(content["notes"])
    except BROKEN as error:
        raise _unreadable(path, error) from None


def read_notes(path: Path) -> dict[str, Any]:
    """The notes alone, without unpacking a count; raises what load_histograms raises."""
    data = _bytes_of(path)
    try:
        return dict(_content(data)["notes"])
    except BROKEN as error:
        raise _unreadable(path, error) from None


def histograms_of(recipe: Recipe, directory: Path) -> dict[str, ScoreHistogram]:
    """What the thresholds of a recipe were fitted on, by module name. DataError if it is not there, is damaged, or
    belongs to another calibration."""
    path, record = directory / HISTOGRAMS_FILE, record_of(recipe, directory)
    try:
        with locked(directory, shared=True):
            data = read_member(directory, HISTOGRAMS_FILE, record.histograms_sha256, MOST_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {AGAIN}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except DataError:
        raise DataError(f"{path} belongs to another calibration than the thresholds beside it: {AGAIN}") from None
    return parse_histograms(data, path)[0]


def record_of(recipe: Recipe, directory: Path) -> CalibrationRecord:
    """The record of a recipe's calibration; DataError, which names the recipe's directory, if it was not calibrated."""
    if recipe.calibration is None:
        raise DataError(f"the recipe in {directory} was not calibrated: run `sparsify calibrate` first")
    return recipe.calibration


def save_calibrated(recipe: Recipe, histograms: Mapping[str, ScoreHistogram], directory: Path) -> Recipe:
    """Writes a calibrated recipe with the histograms behind it, and returns it with their hash in its record.

    Both are written as one (see save_recipe). SparsifyError if they cannot be written.
    """
    data = histogram_bytes(histograms)
    if recipe.calibration is not None:
        recipe = replace(recipe, calibration=replace(recipe.calibration, histograms_sha256=sha256(data)))
    save_recipe(recipe, directory, force=True, beside={HISTOGRAMS_FILE: data})
    return recipe


def _bytes_of(path: Path) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except (OSError, DataError) as error:
        raise _unreadable(path, error) from None


def _content(data: bytes) -> dict[str, Any]:
    content = read_content(data)
    if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
        raise DataError(f"it is not a histogram file of version {FORMAT_VERSION}")
    return content


def _unreadable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is missing: {AGAIN}")
    return DataError(f"{path} cannot be read ({reason(error)}): {AGAIN}")


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
    size = width * math.prod(shape)
    if size > MOST_BYTES:
        raise ValueError(f"an array takes more than {MOST_BYTES >> 20} MiB")
    plain = zlib.decompressobj().decompress(data[1:], size + 1)
    if len(plain) != size:
        raise ValueError("an array has another size than it should")
    counts = torch.from_numpy(np.frombuffer(plain, f"<i{width}").astype(np.int64)).view(*shape)
    if bool((counts < 0).any()):
        raise ValueError("a count is negative")
    return counts


def _size(name: str, facts: dict[str, Any]) -> int:
    """The bytes that the arrays of a module take in memory; ValueError if what is said of them is impossible."""
    for what, most in MOST.items():
        if not _is_count(facts[what], most):
            raise ValueError(f"the number of {what} of {name} is no whole number from 0 to {most}")
    buckets = 0
    for part in facts["buckets"].values():
        good = isinstance(part, list) and all(_is_count(bucket, BUCKETS - 1) for bucket in part)
        if not good or part != sorted(set(part)):
            raise ValueError(f"the buckets of {name} are not ascending whole numbers below {BUCKETS}")
        buckets += len(part)
    return 8 * (int(facts["rows"]) + buckets * int(facts["heads"]) * BINS)


def _histogram(tensors: Mapping[str, Tensor], name: str, facts: dict[str, Any]) -> ScoreHistogram:
    def bytes_of(part: str) -> bytes:
        return bytes(tensors[f"{name}.{part}"].numpy().tobytes())

    def counts_of(part: str) -> Counts:
        buckets = facts["buckets"][part]
        return dict(zip(buckets, _unpacked(bytes_of(part), len(buckets), facts["heads"], BINS), strict=True))

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
