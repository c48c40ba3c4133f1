"""The recipe file: round trips, refusals, and writing all or nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_sparsify.errors import DataError, SparsifyError, UsageError
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.recipe import (
    BaseModel,
    CalibrationRecord,
    Recipe,
    check_place,
    is_recipe,
    load_recipe,
    save_recipe,
)
from hf_sparsify.patcher.thresholds import ModuleThresholds

BASE = BaseModel("some/model", "causal-lm", "llama", "abc", revision="0123")
PLAN: dict[str, AttentionMethod] = {
    "layers.0.attn": TopK(k=8, protect_first=2),
    "layers.1.attn": TopTheta(keep=0.25, min_keep=3, min_length=99),
}
BASE_DATA = {"id": "some/model", "task": "causal-lm", "model_type": "llama", "config_hash": "abc"}
RECORD = CalibrationRecord("squad", "train", "f" * 64, 16, 7, "k = 8")


def table(shift: float = 0.0) -> ModuleThresholds:
    return ModuleThresholds(torch.tensor([4.0, 9.0]), torch.tensor([[0.5, 1.0], [-1.0, 2.0]]) + shift, 4, 9)


def plain() -> Recipe:
    return Recipe(BASE, PLAN, versions={"torch": "2"})


def calibrated() -> Recipe:
    return replace(plain(), thresholds={"layers.1.attn": table()}, calibration=RECORD, before_calibration=PLAN)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def damaged(directory: Path, **changes: Any) -> Path:
    """A recipe whose sparsify.json was edited; a change to ... removes the key."""
    save_recipe(calibrated(), directory)
    data = json.loads((directory / "sparsify.json").read_text())
    for key, value in changes.items():
        if value is ...:
            del data[key]
        else:
            data[key] = value
    (directory / "sparsify.json").write_text(json.dumps(data))
    return directory


def test_plain_recipe_comes_back_equal(tmp_path: Path) -> None:
    assert save_recipe(plain(), tmp_path / "deep" / "recipe") == tmp_path / "deep" / "recipe"
    assert load_recipe(tmp_path / "deep" / "recipe") == plain()
    assert list(content(tmp_path)) == ["deep/recipe/sparsify.json"]


def test_calibrated_recipe_comes_back_with_its_thresholds(tmp_path: Path) -> None:
    save_recipe(calibrated(), tmp_path)
    loaded = load_recipe(tmp_path)
    assert replace(loaded, thresholds={}) == replace(calibrated(), thresholds={})
    assert list(loaded.thresholds) == ["layers.1.attn"]
    assert torch.equal(loaded.thresholds["layers.1.attn"].theta, table().theta)
    assert sorted(content(tmp_path)) == ["sparsify.json", "thresholds.safetensors"]


def test_as_top_k_is_the_plan_from_before() -> None:
    before = replace(calibrated(), before_calibration={"layers.0.attn": TopK(k=8)}).as_top_k()
    assert before.plan == {"layers.0.attn": TopK(k=8)}
    assert (before.thresholds, before.calibration, before.before_calibration) == ({}, None, None)
    with pytest.raises(UsageError, match="not calibrated"):
        plain().as_top_k()


def test_another_recipe_is_replaced_with_force_only(tmp_path: Path) -> None:
    save_recipe(calibrated(), tmp_path)
    before = content(tmp_path)
    with pytest.raises(UsageError, match="--force"):
        save_recipe(plain(), tmp_path)
    assert content(tmp_path) == before
    save_recipe(plain(), tmp_path, force=True)
    assert load_recipe(tmp_path) == plain()
    assert list(content(tmp_path)) == ["sparsify.json"], "thresholds of the old recipe are gone"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_interrupted_write_leaves_a_recipe_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save_recipe(plain(), tmp_path)
    moves: list[Any] = []
    move = os.replace

    def interrupted(source: Any, target: Any) -> None:
        moves.append(target)
        if len(moves) > failing:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_recipe(calibrated(), tmp_path, force=True)
    assert load_recipe(tmp_path) == plain()
    assert not list(tmp_path.glob(".writing-*"))


def test_an_interrupted_recalibration_does_not_mix_two_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_recipe(calibrated(), tmp_path)
    move = os.replace

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).name == "sparsify.json":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_recipe(replace(calibrated(), thresholds={"layers.1.attn": table(shift=5.0)}), tmp_path, force=True)
    try:
        loaded = load_recipe(tmp_path)
    except DataError:
        return
    assert torch.equal(loaded.thresholds["layers.1.attn"].theta, table().theta)


def test_unwritable_places_are_named_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here")
    with pytest.raises(SparsifyError, match=r"recipe to .*file: it is a file"):
        save_recipe(plain(), file)
    with pytest.raises(SparsifyError, match=r"results to .*: .*file is a file"):
        check_place(file / "below" / "it", "results")
    check_place(tmp_path / "new" / "deep", "results")
    assert list(content(tmp_path)) == ["file"]


def test_directory_without_a_recipe(tmp_path: Path) -> None:
    assert not is_recipe(tmp_path)
    with pytest.raises(DataError, match=r"holds no recipe .*sparsify patch MODEL"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", '"text', "[" * 100_000])
def test_a_file_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "sparsify.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"sparsify\.json cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["[]", "5", "null", "{}"])
def test_json_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "sparsify.json").write_text(text)
    with pytest.raises(DataError, match=r"sparsify\.json is malformed"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 99}, "schema version 99 is not 1"),
        ({"plan": {}}, "the plan names no module"),
        ({"plan": ...}, "'plan' is missing"),
        ({"plan": {"a": {"method": "magic"}}}, "unknown method 'magic'"),
        ({"plan": {"a": {"method": "top-k", "k": "8"}}}, "k must be a whole number"),
        ({"plan": {"a": {"method": "top-k", "k": 0}}}, "k must be a whole number"),
        ({"plan": {"a": {"method": "top-k", "k": 8, "colour": 1}}}, "no option 'colour'"),
        ({"plan": ["a"]}, "malformed"),
        ({"plan": {"a": 5}}, "malformed"),
        ({"base_model": {}}, "malformed"),
        ({"base_model": {"id": 5, "task": "t", "model_type": "m", "config_hash": "h"}}, "id is 5"),
        ({"base_model": {**BASE_DATA, "id": "../model"}}, "neither a name on the Hub nor a full path"),
        ({"base_model": {**BASE_DATA, "gguf_file": "../x.gguf"}}, "not inside the model"),
        ({"base_model": {**BASE_DATA, "gguf_file": "/x.gguf"}}, "not inside the model"),
        ({"base_model": {**BASE_DATA, "task": "\x1b[2J"}}, "control characters"),
        ({"plan": {"a": {"method": "top-k", "k": 10**30}}}, "k must be at most"),
        ({"plan": {"a": {"method": "clustered", "iterations": 10**6}}}, "iterations must be at most 1000"),
        ({"plan": {f"a{i}": {"method": "top-k", "k": 1} for i in range(10_001)}}, "more than 10000 modules"),
        ({"schema_version": True}, "schema version True"),
        ({"schema_version": "x" * 10**6}, "schema version 'xxx"),
        ({"thresholds_sha256": 5}, "thresholds_sha256 is 5"),
        ({"versions": {"torch": 2}}, "versions are texts"),
        ({"calibration": {"dataset": "squad"}}, "malformed"),
        ({"calibration": ...}, "'calibration' is missing"),
        ({"versions": None}, "malformed"),
    ],
)
def test_a_malformed_recipe_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_recipe(damaged(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    save_recipe(calibrated(), tmp_path)
    with (tmp_path / "thresholds.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"thresholds\.safetensors cannot be read .*larger than 64 MiB"):
        load_recipe(tmp_path)
    with (tmp_path / "sparsify.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"sparsify\.json cannot be read: is larger than 16 MiB"):
        load_recipe(tmp_path)


def test_a_name_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a recipe cannot hold this name"):
        save_recipe(replace(plain(), base_model=replace(BASE, id="/a\nb")), tmp_path)
    assert not list(content(tmp_path))


def test_fields_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    save_recipe(plain(), tmp_path)
    data = json.loads((tmp_path / "sparsify.json").read_text())
    data["base_model"]["new"], data["newer"] = 1, 2
    (tmp_path / "sparsify.json").write_text(json.dumps(data))
    assert load_recipe(tmp_path) == plain()


def test_a_recipe_from_before_min_length_has_none(tmp_path: Path) -> None:
    save_recipe(plain(), tmp_path)
    data = json.loads((tmp_path / "sparsify.json").read_text())
    for entry in data["plan"].values():
        del entry["min_length"]
    (tmp_path / "sparsify.json").write_text(json.dumps(data))
    loaded = load_recipe(tmp_path).plan
    assert loaded == {**PLAN, "layers.1.attn": TopTheta(keep=0.25, min_keep=3)}


@pytest.mark.parametrize("bytes_", [None, b"", b"nonsense", b"\xff" * 64])
def test_missing_or_malformed_thresholds(tmp_path: Path, bytes_: bytes | None) -> None:
    save_recipe(calibrated(), tmp_path)
    file = tmp_path / "thresholds.safetensors"
    file.unlink() if bytes_ is None else file.write_bytes(bytes_)
    with pytest.raises(DataError, match=r"thresholds.safetensors .*sparsify calibrate"):
        load_recipe(tmp_path)


def test_thresholds_of_modules_outside_the_plan_are_dropped(tmp_path: Path) -> None:
    save_recipe(replace(calibrated(), thresholds={"layers.1.attn": table(), "gone": table()}), tmp_path)
    assert list(load_recipe(tmp_path).thresholds) == ["layers.1.attn"]


def test_thresholds_without_a_calibration_record_come_back(tmp_path: Path) -> None:
    """As a Python caller saves them who calibrated in memory."""
    save_recipe(replace(calibrated(), calibration=None), tmp_path)
    loaded = load_recipe(tmp_path)
    assert loaded.calibration is None
    assert torch.equal(loaded.thresholds["layers.1.attn"].theta, table().theta)


def test_as_top_k_of_a_recipe_that_began_as_top_theta_is_exact() -> None:
    began: dict[str, AttentionMethod] = {"layers.1.attn": TopTheta(k=4, protect_first=1)}
    recipe = replace(calibrated(), before_calibration=began).as_top_k()
    assert recipe.plan == {"layers.1.attn": TopK(k=4, protect_first=1)}
