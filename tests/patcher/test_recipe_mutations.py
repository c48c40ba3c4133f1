"""Whatever bytes are in a recipe's files, loading gives a recipe or one sentence that names the file."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from hf_sparsify.calibration.histogram_file import HISTOGRAMS_FILE, histogram_bytes, parse_histograms
from hf_sparsify.errors import DataError
from hf_sparsify.files import sha256
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain, TopK, TopKFeedForward, TopTheta
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.patcher.recipe import (
    RECIPE_FILE,
    THRESHOLDS_FILE,
    BaseModel,
    CalibrationRecord,
    Recipe,
    load_recipe,
    save_recipe,
)
from hf_sparsify.patcher.tensor_file import METADATA
from hf_sparsify.patcher.thresholds import ModuleThresholds
from mutations import mutated, mutated_json
from score_chunks import chunk, observed
from score_chunks import random as random_chunk

COUNT = 3400  # of mutated files of each of the three kinds


def table(placement: str) -> ModuleThresholds:
    lengths, theta = torch.tensor([4.0, 9.0]), torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    return ModuleThresholds(lengths, theta, 4, 9, placement, 0.125, "causal self-attention", theta.exp())


def recipe() -> Recipe:
    """One with every method and every field."""
    return Recipe(
        BaseModel("org/model", "causal-lm", "llama", "abc", "main", "model.gguf"),
        {
            "a": TopK(k=8, protect_first=2),
            "b": TopTheta(keep=0.25, min_keep=3, min_length=99, compensation="sdc+vmc"),
            "c": TopTheta(k=4, placement="max-relative", compensation="sdc", denominator="offline"),
            "d": Clustered(clusters=5, k=4),
            "e": ClusteredPlain(seed=7),
            "f": TopKFeedForward(keep=0.5),
        },
        thresholds={"b": table("post-softmax"), "c": table("max-relative")},
        calibration=CalibrationRecord("squad", "train", "f" * 64, 16, 7, "k = 8", ("a", "b"), alpha=0.5),
        before_calibration={"a": TopK(k=8)},
        versions={"torch": "2"},
    )


def with_header(data: bytes, header: str) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    text = header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def damaged_tensors(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A safetensors file with damaged bytes, another header, or other metadata."""
    way = chance.randrange(3)
    if way == 0:
        return mutated(chance, data, others)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if way == 1:
        return with_header(data, mutated_json(chance, header))
    header["__metadata__"][METADATA] = mutated_json(chance, json.loads(header["__metadata__"][METADATA]))
    return with_header(data, json.dumps(header))


def check_sentence(error: DataError, name: str) -> None:
    text = str(error)
    assert name in text
    assert len(text) < 900
    assert "\n" not in text
    assert not any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text), ascii(text)


def damaged_recipes(chance: random.Random, directory: Path) -> Iterator[str]:
    """Writes damaged recipes into a directory, one after the other; yields the name of the damaged file."""
    save_recipe(recipe(), directory)
    text, tensors = (directory / RECIPE_FILE).read_bytes(), (directory / THRESHOLDS_FILE).read_bytes()
    content = json.loads(text)
    for _ in range(COUNT):
        made = mutated(chance, text, [text, tensors]) if chance.random() < 0.4 else None
        made = mutated_json(chance, content).encode() if made is None else made
        (directory / RECIPE_FILE).write_bytes(made)
        yield RECIPE_FILE
    for _ in range(COUNT):
        made = damaged_tensors(chance, tensors, [text, tensors])
        (directory / THRESHOLDS_FILE).write_bytes(made)
        (directory / RECIPE_FILE).write_text(json.dumps({**content, "thresholds_sha256": sha256(made)}))
        yield THRESHOLDS_FILE


def test_a_recipe_or_one_sentence(tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for name in damaged_recipes(random.Random(1), tmp_path / "damaged"):
        try:
            loaded = load_recipe(tmp_path / "damaged")
        except DataError as error:
            check_sentence(error, str(tmp_path / "damaged"))
            ends["refused"] += 1
            continue
        ends[f"loaded, {name}"] += 1
        if ends[f"loaded, {name}"] % 50 == 1:
            save_recipe(loaded, tmp_path / "again", force=True)
            again = load_recipe(tmp_path / "again")
            assert replace(again, thresholds={}) == replace(loaded, thresholds={})
            assert again.thresholds.keys() == loaded.thresholds.keys()
    assert ends.total() == 2 * COUNT
    assert ends["refused"] > COUNT
    assert all(ends[f"loaded, {name}"] for name in (RECIPE_FILE, THRESHOLDS_FILE)), "some damage does no harm"


def test_histograms_or_one_sentence() -> None:
    chance = random.Random(2)
    histogram = observed(Budget(k=4), [chunk(random_chunk(0))], "max-relative", limits=True, mass=True)
    data = histogram_bytes({"a": histogram, "b": observed(Budget(keep=0.5), [chunk(random_chunk(1))])}, {"key": "x"})
    ends: Counter[str] = Counter()
    for _ in range(COUNT):
        try:
            parse_histograms(damaged_tensors(chance, data, [data]), Path(HISTOGRAMS_FILE))
            ends["loaded"] += 1
        except DataError as error:
            check_sentence(error, HISTOGRAMS_FILE)
            ends["refused"] += 1
    assert ends.total() == COUNT
    assert ends["refused"] > COUNT // 2
    assert ends["loaded"]
