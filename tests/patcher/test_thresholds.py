"""The threshold table: lookup, interpolation and its file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_sparsify.errors import DataError
from hf_sparsify.patcher.thresholds import FORMAT, FORMAT_VERSION, ModuleThresholds, load_thresholds, save_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

LENGTHS = [3.0, 7.0, 20.5, 64.0]
THETA = [[-1.25, 0.3, 0.75, 2.0], [4.0, 3.0, 3.5, 0.1]]


def table() -> ModuleThresholds:
    return ModuleThresholds(torch.tensor(LENGTHS), torch.tensor(THETA), shortest=3, longest=70)


def scalar_lookup(head: int, length: int) -> float:
    """The rule in plain floats: linear in log length between calibrated lengths, flat beyond them, none outside."""
    if not 3 <= length <= 70:
        return math.nan
    theta = THETA[head]
    if length >= LENGTHS[-1]:
        return theta[-1]
    right = next(t for t, known in enumerate(LENGTHS) if known >= length)
    if right == 0:
        return theta[0]
    low, high = math.log(LENGTHS[right - 1]), math.log(LENGTHS[right])
    share = (math.log(length) - low) / (high - low)
    return theta[right - 1] + share * (theta[right] - theta[right - 1])


def test_calibrated_lengths_give_their_own_threshold() -> None:
    grid = torch.tensor([[[3, 7, 64]]])
    assert torch.equal(table().lookup(grid), torch.tensor(THETA)[None][..., [0, 1, 3]])


@pytest.mark.parametrize("first", [1, 2, 5, 1000])
def test_every_calibrated_length_is_exact(first: int) -> None:
    lengths = torch.arange(first, first + 700)
    theta = torch.randn(1, 700, generator=torch.Generator().manual_seed(first))
    made = ModuleThresholds(lengths.float(), theta, first, first + 699)
    assert torch.equal(made.lookup(lengths.view(1, 1, -1)), theta.unsqueeze(0))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_lookup_equals_the_scalar_rule(lengths: list[int]) -> None:
    found = table().lookup(torch.tensor(lengths).view(1, 1, -1))
    expected = torch.tensor([[[scalar_lookup(head, length) for length in lengths] for head in range(2)]])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_outside_the_calibrated_range_there_is_none() -> None:
    found = table().lookup(torch.tensor([[[0, 2, 3, 70, 71, 10**6]]]))
    assert found.isnan().tolist() == [[[True, True, False, False, True, True]] * 2]


def test_batched_lookup_equals_one_row_at_a_time() -> None:
    lengths = torch.randint(0, 80, (3, 1, 5), generator=torch.Generator().manual_seed(0))
    found = table().lookup(lengths)
    assert found.shape == (3, 2, 5)
    per_head = torch.randint(0, 80, (3, 2, 5), generator=torch.Generator().manual_seed(1))
    found_per_head = table().lookup(per_head)
    assert found_per_head.shape == (3, 2, 5)
    for b in range(3):
        for i in range(5):
            alone = table().lookup(lengths[b : b + 1, :, i : i + 1])
            torch.testing.assert_close(found[b, :, i], alone[0, :, 0], rtol=0, atol=0, equal_nan=True)
            for head in range(2):
                alone = table().lookup(per_head[b : b + 1, head : head + 1, i : i + 1])
                torch.testing.assert_close(
                    found_per_head[b, head, i], alone[0, head, 0], rtol=0, atol=0, equal_nan=True
                )


def test_one_calibrated_length_holds_for_the_whole_range() -> None:
    made = ModuleThresholds(torch.tensor([10.0]), torch.tensor([[1.5]]), 8, 12)
    assert made.lookup(torch.arange(7, 14).view(1, 1, -1)).nan_to_num(-9).tolist() == [
        [[-9, 1.5, 1.5, 1.5, 1.5, 1.5, -9]]
    ]


def test_a_copy_looks_up_the_same() -> None:
    made = table()
    made.lookup(torch.tensor([[[5]]]))
    assert torch.equal(copy.deepcopy(made).lookup(torch.tensor([[[5]]])), made.lookup(torch.tensor([[[5]]])))


@pytest.mark.parametrize(
    "fields",
    [
        {"theta": torch.zeros(2, 3)},
        {"theta": torch.zeros(4)},
        {"lengths": torch.zeros(2, 2)},
        {"lengths": torch.tensor([3.0, 7.0, 7.0, 9.0])},
        {"lengths": torch.tensor([3.0, 7.0, 6.0, 9.0])},
        {"theta": torch.tensor([[0.0, 1.0, math.nan, 2.0]])},
        {"theta": torch.tensor([[0.0, 1.0, math.inf, 2.0]])},
        {"lengths": torch.zeros(0), "theta": torch.zeros(2, 0)},
        {"shortest": 0},
        {"shortest": 71},
        {"lengths": torch.tensor([3.0, math.nan, 8.0, 9.0])},
        {"lengths": torch.tensor([0.0, 5.0, 8.0, 9.0])},
        {"lengths": torch.tensor([3.0, 5.0, 8.0, math.inf])},
    ],
    ids=str,
)
def test_a_table_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "lengths": torch.tensor(LENGTHS),
        "theta": torch.tensor(THETA),
        "shortest": 3,
        "longest": 70,
    }
    with pytest.raises(DataError, match="threshold table needs"):
        ModuleThresholds(**{**good, **fields})


def test_a_file_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.safetensors"
    other = ModuleThresholds(torch.tensor([2.5]), torch.tensor([[1e-38], [-7.1]]), 2, 3)
    save_thresholds({"model.layers.1.self_attn": table(), "a.b": other}, path)
    loaded = load_thresholds(path)
    assert list(loaded) == ["model.layers.1.self_attn", "a.b"]
    for back, made in zip(loaded.values(), (table(), other), strict=True):
        assert torch.equal(back.lengths, made.lengths)
        assert torch.equal(back.theta, made.theta)
        assert (back.shortest, back.longest, back.heads) == (made.shortest, made.longest, 2)


def test_an_empty_table_comes_back_empty(tmp_path: Path) -> None:
    save_thresholds({}, tmp_path / "none.safetensors")
    assert load_thresholds(tmp_path / "none.safetensors") == {}


def _write(path: Path, tensors: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> None:
    good = {"m.lengths": torch.tensor([4.0]), "m.theta": torch.zeros(2, 1), "m.range": torch.tensor([4, 4])}
    said = {"format": FORMAT, "version": str(FORMAT_VERSION), "modules": json.dumps(["m"])}
    save_file({**good, **(tensors or {})}, path, metadata={**said, **(metadata or {})})


def test_the_good_file_of_the_next_tests_loads(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    _write(path)
    assert load_thresholds(path)["m"].heads == 2


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "something else"},
        {"version": "2"},
        {"modules": "[not json"},
        {"modules": '["m", "missing"]'},
        {"modules": "7"},
        {"modules": "null"},
    ],
    ids=str,
)
def test_wrong_metadata_is_named(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "t.safetensors"
    _write(path, metadata=metadata)
    with pytest.raises(DataError, match=r"t\.safetensors"):
        load_thresholds(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"m.range": torch.tensor([4])},
        {"m.range": torch.tensor(4)},
        {"m.range": torch.tensor([9, 4])},
        {"m.theta": torch.full((2, 1), math.nan)},
        {"m.theta": torch.zeros(2, 3)},
        {"m.lengths": torch.zeros(1, 1)},
    ],
    ids=str,
)
def test_wrong_tensors_are_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    _write(path, tensors)
    with pytest.raises(DataError, match=r"t\.safetensors"):
        load_thresholds(path)


def test_missing_metadata_missing_file_folder_and_plain_text(tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"m.lengths": torch.zeros(1)}, bare)
    text = tmp_path / "text.safetensors"
    text.write_text("hello, this is not a table")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    for path in (bare, text, empty, tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            load_thresholds(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.safetensors"
    save_thresholds({"m": table()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"t\.safetensors"):
        load_thresholds(path)
