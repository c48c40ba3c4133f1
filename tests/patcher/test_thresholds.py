"""The threshold table: lookup, interpolation and its file."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
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
DROPPED = [[0.0, 0.5, 1.25, 40.0], [2.0, 1.0, 3.0, 0.25]]


def table(**fields: Any) -> ModuleThresholds:
    return ModuleThresholds(torch.tensor(LENGTHS), torch.tensor(THETA), shortest=3, longest=70, **fields)


def scalar_lookup(head: int, length: int, values: list[list[float]] = THETA) -> float:
    """The rule in plain floats: linear in log length between calibrated lengths, flat beyond them, none outside."""
    if not 3 <= length <= 70:
        return math.nan
    theta = values[head]
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
    dropped = table(dropped=torch.tensor(DROPPED)).lookup_dropped(torch.tensor(lengths).view(1, 1, -1))
    expected = torch.tensor([[[scalar_lookup(head, length, DROPPED) for length in lengths] for head in range(2)]])
    torch.testing.assert_close(dropped, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_outside_the_calibrated_range_there_is_none() -> None:
    lengths = torch.tensor([[[0, 2, 3, 70, 71, 10**6]]])
    expected = [True, True, False, False, True, True]
    assert table().lookup(lengths).isnan().tolist() == [[expected] * 2]
    assert table(dropped=torch.tensor(DROPPED)).lookup_dropped(lengths).isnan().tolist() == [[expected] * 2]
    # A row that sees nothing needs none.
    assert table().outside(lengths).tolist() == [[[False, *expected[1:]]]]


def test_a_dropped_mass_that_was_not_calibrated_is_asked_for_in_vain() -> None:
    with pytest.raises(DataError, match="without the offline denominator: calibrate"):
        table().lookup_dropped(torch.tensor([[[5]]]))


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
        {"lengths": torch.tensor(LENGTHS[:2])},
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


@pytest.mark.parametrize(
    "dropped",
    [torch.tensor(DROPPED)[:, :3], torch.tensor(DROPPED)[:1], -torch.tensor(DROPPED), torch.full((2, 4), math.nan)],
)
def test_a_dropped_mass_that_makes_no_sense_is_refused(dropped: Tensor) -> None:
    with pytest.raises(DataError, match="dropped mass of a threshold table"):
        table(dropped=dropped)


def several() -> dict[str, ModuleThresholds]:
    other = ModuleThresholds(
        torch.tensor([2.5]), torch.tensor([[1e-38], [-7.1]]), 2, 3, "max-relative", 0.1 + 0.2, "cross-attention"
    )
    full = table(placement="pre-softmax", scale=8**-0.5, nature="bidirectional", dropped=torch.tensor(DROPPED) / 3)
    return {"model.layers.1.self_attn": table(), "a.b": other, "a.a": full, **{f"m.{i}": table() for i in range(5)}}


def test_a_file_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.safetensors"
    save_thresholds(several(), path)
    loaded = load_thresholds(path)
    assert list(loaded) == list(several())
    for back, made in zip(loaded.values(), several().values(), strict=True):
        for name, value in vars(made).items():
            found = getattr(back, name)
            assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, name
    again = tmp_path / "again.safetensors"
    save_thresholds(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_equal_tables_make_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import torch
from hf_sparsify.patcher.thresholds import ModuleThresholds, save_thresholds
names = [f"model.layers.{i}.self_attn" for i in range(12)]
tables = {name: ModuleThresholds(torch.tensor([2.0, 4.0]), torch.full((2, 2), 0.5 * i), 2, 4, "pre-softmax", 0.125,
          "bidirectional", torch.ones(2, 2)) for i, name in enumerate(names)}
save_thresholds(tables, Path(sys.argv[1]))
"""
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONHASHSEED": path.stem})
        for path in paths
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(load_thresholds(paths[0])) == 12


def test_an_empty_table_comes_back_empty(tmp_path: Path) -> None:
    save_thresholds({}, tmp_path / "none.safetensors")
    assert load_thresholds(tmp_path / "none.safetensors") == {}


FACTS = {"shortest": 4, "longest": 4, "placement": "post-softmax", "scale": None, "nature": None}
CONTENT = {"format": FORMAT, "version": FORMAT_VERSION, "modules": {"m": FACTS}}


def _write(path: Path, tensors: dict[str, Tensor] | None = None, content: object = CONTENT) -> None:
    good = {"m.lengths": torch.tensor([4.0]), "m.theta": torch.zeros(2, 1), "m.dropped": torch.ones(2, 1)}
    text = content if isinstance(content, str) else json.dumps(content)
    save_file({**good, **(tensors or {})}, path, metadata={"hf_sparsify": text})


def test_the_good_file_of_the_next_tests_loads(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    _write(path)
    loaded = load_thresholds(path)["m"]
    assert loaded.heads == 2
    assert loaded.dropped is not None


@pytest.mark.parametrize(
    "content",
    [
        {**CONTENT, "format": "something else"},
        {**CONTENT, "version": 1},
        {**CONTENT, "version": 3},
        {"format": FORMAT, "version": FORMAT_VERSION},
        "[not json",
        "7",
        "null",
        {**CONTENT, "modules": ["m"]},
        {**CONTENT, "modules": 7},
        {**CONTENT, "modules": {"m": FACTS, "missing": FACTS}},
        {**CONTENT, "modules": {"m": 7}},
        {**CONTENT, "modules": {"m": {}}},
        {**CONTENT, "modules": {"m": {**FACTS, "longest": 3}}},
        {**CONTENT, "modules": {"m": {**FACTS, "longest": "4"}}},
        {**CONTENT, "modules": {"m": {**FACTS, "theta": 0.5}}},
        {**CONTENT, "modules": {"m": {**FACTS, "unknown": 1}}},
        {**CONTENT, "modules": {"m": {**FACTS, "placement": "somewhere"}}},
        {**CONTENT, "modules": {"m": {**FACTS, "scale": "one"}}},
    ],
    ids=str,
)
def test_wrong_metadata_is_named_once(tmp_path: Path, content: object) -> None:
    path = tmp_path / "t.safetensors"
    _write(path, content=content)
    with pytest.raises(DataError, match=r"t\.safetensors") as caught:
        load_thresholds(path)
    assert str(caught.value).count("t.safetensors") == 1


def test_a_file_of_the_version_before_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    metadata = {"format": FORMAT, "version": "1", "modules": json.dumps(["m"])}
    save_file({"m.lengths": torch.tensor([4.0]), "m.theta": torch.zeros(2, 1)}, path, metadata=metadata)
    with pytest.raises(DataError, match="make the recipe anew with `sparsify patch --force` and `sparsify calibrate`"):
        load_thresholds(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"m.dropped": torch.ones(2, 2)},
        {"m.dropped": -torch.ones(2, 1)},
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
