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
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import DataError
from ..patcher.methods.budget import Budget
from ..patcher.recipe import Recipe
from .grid import BINS, BUCKETS, buckets_of
from .histogram import Counts, ScoreHistogram

FORMAT = "hf_sparsify.histograms"
FORMAT_VERSION = 1
HISTOGRAMS_FILE = "histograms.safetensors"
AGAIN = "`sparsify calibrate` makes it anew"


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
            content = json.loads((file.metadata() or {}).get("hf_sparsify", "{}"))
            if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
                raise DataError(f"it is not a histogram file of version {FORMAT_VERSION}")
            modules = content["modules"].items()
            return {name: _histogram(file, name, facts) for name, facts in modules}, dict(content["notes"])
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {AGAIN}") from None
    except (SafetensorError, zlib.error, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): {AGAIN}") from None


def histograms_of(recipe: Recipe, directory: Path) -> dict[str, ScoreHistogram]:
    """What the thresholds of a recipe were fitted on, by module name. DataError if it is not there, is damaged, or
    belongs to another calibration."""
    path = directory / HISTOGRAMS_FILE
    if recipe.calibration is None:
        raise DataError(f"the recipe in {directory} was not calibrated: run `sparsify calibrate` first")
    if not path.is_file():
        raise DataError(f"{path} is missing: {AGAIN}")
    if file_hash(path) != recipe.calibration.histograms_sha256:
        raise DataError(f"{path} belongs to another calibration than the thresholds beside it: {AGAIN}")
    return load_histograms(path)[0]


def file_hash(path: Path) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _packed(counts: Tensor | None) -> Tensor:
    """Whole numbers as the bytes of a compressed array, uint8."""
    array = np.zeros(0, np.int64) if counts is None else counts.numpy()
    small = not array.size or int(array.max()) <= np.iinfo(np.int32).max
    kind = b"4" if small else b"8"
    data = kind + zlib.compress(array.astype("<i4" if small else "<i8").tobytes(), 1)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(data: bytes, *shape: int) -> Tensor:
    """The inverse of _packed: int64 of this shape."""
    width = int(data[:1])
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
        if not all(isinstance(bucket, int) and 0 <= bucket < BUCKETS for bucket in buckets):
            raise ValueError(f"{name} has buckets {buckets}")
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
    missing = set(buckets_of(made.rows.nonzero().flatten()).tolist()) - set(made.counts)
    if missing:
        raise ValueError(f"{name} has rows without counts")
    return made
