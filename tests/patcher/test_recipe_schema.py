"""The JSON schema says what loading says: the same fields, ranges and choices, and every written recipe fits it."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import METHODS, TopK, TopTheta, method_from_dict, method_to_dict
from hf_sparsify.patcher.recipe import BaseModel, CalibrationRecord, Recipe, _parse, save_recipe
from hf_sparsify.patcher.thresholds import ModuleThresholds
from jsonschema import Draft202012Validator

SCHEMA: dict[str, Any] = json.loads((files("hf_sparsify.patcher") / "recipe.schema.json").read_text(encoding="utf-8"))
RECORDS = {"base_model": BaseModel, "calibration": CalibrationRecord}
# To a schema 2.0 is a whole number, so it is no probe.
NUMBERS = [-1, 0, 1, 2, 63, 64, 1000, 1001, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 0.25, 1.5, -0.5]
PROBES = [*NUMBERS, None, True, False, "", "none", "1", [], {}]
WORDS = ["sdc", "sdc+vmc", "vmc", "visible", "dropped", "post-softmax", "max-relative", "pre-softmax", "exact"]
WORDS += ["exp-threshold", "offline", "rounded", "Exact", "all", "rows", "hamming"]
BASE = BaseModel("some/model", "causal-lm", "llama", "abc")


def fits(value: Any, part: str | None = None) -> bool:
    """Whether a value fits the schema, or a definition of it."""
    schema = SCHEMA if part is None else {"$ref": f"#/$defs/{part}", "$defs": SCHEMA["$defs"]}
    return bool(Draft202012Validator(schema).is_valid(value))


def loads(entry: Any) -> bool:
    try:
        method_from_dict(entry)
    except UsageError:
        return False
    return True


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_it_knows_every_method_and_no_other() -> None:
    entries = SCHEMA["$defs"]["plan"]["additionalProperties"]["oneOf"]
    listed = [entry["$ref"].removeprefix("#/$defs/") for entry in entries]
    assert listed == list(METHODS)
    for name, kind in METHODS.items():
        properties = SCHEMA["$defs"][name]["properties"]
        assert list(properties) == ["method", *(item.name for item in fields(kind))]
        assert properties["method"] == {"const": name}


@pytest.mark.parametrize("name", RECORDS)
def test_records_have_the_same_fields(name: str) -> None:
    items = fields(RECORDS[name])  # type: ignore[arg-type]
    assert list(SCHEMA["$defs"][name]["properties"]) == [item.name for item in items]
    assert SCHEMA["$defs"][name]["required"] == [item.name for item in items if item.default is MISSING]


@pytest.mark.parametrize("name", METHODS)
def test_ranges_and_choices_are_those_of_loading(name: str) -> None:
    """Every field alone, beside others that no value of it contradicts."""
    kind = METHODS[name]
    known = {item.name for item in fields(kind)}
    beside = {"keep": 0.5} if "keep" in known else {}
    if "placement" in known:
        beside |= {"placement": "max-relative"}
    if "clustering" in known:
        beside |= {"clustering": "hamming"}
    if "compensation" in known:
        beside |= {"compensation": "sdc"}
    differ = []
    for field in sorted(known):
        for value in [*PROBES, *WORDS]:
            entry = {"method": name, **beside, field: value}
            if field == "k" and value is not None:
                entry.pop("keep", None)
            if (field, value) == ("compensation", "none"):
                entry.pop("denominator", None)
            if loads(entry) != fits(entry, name):
                differ.append((field, value))
    assert not differ


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "top-k"},
        {"method": "top-k", "k": 4, "keep": 0.5},
        {"method": "top-k", "k": None, "keep": None},
        {"method": "top-k", "k": 4, "colour": 1},
        {"method": "magic", "k": 4},
        {"k": 4},
        {"method": "top-k", "k": 4, "keep": None},
        {"method": "clustered"},
        {"method": "top-k-feed-forward", "keep": 1},
    ],
    ids=str,
)
def test_whole_entries(entry: dict[str, Any]) -> None:
    assert fits({"a": entry}, "plan") == loads(entry)


def written(directory: Path) -> dict[str, Any]:
    """A recipe with everything, as it is on disk."""
    plan = {kind.name: kind() if "keep" not in kind.__dataclass_fields__ else kind(k=4) for kind in METHODS.values()}
    table = ModuleThresholds(torch.tensor([4.0]), torch.zeros(2, 1), 4, 4)
    record = CalibrationRecord("squad", "train", "f", 16, 7, "k = 8", ("a",))
    recipe = Recipe(BASE, plan, {"top-theta": table}, record, {"a": TopK(k=4)}, {"torch": "2"})  # type: ignore[arg-type]
    save_recipe(recipe, directory)
    data: dict[str, Any] = json.loads((directory / "sparsify.json").read_text())
    return data


def test_written_recipes_fit(tmp_path: Path) -> None:
    assert list(Draft202012Validator(SCHEMA).iter_errors(written(tmp_path / "full"))) == []
    save_recipe(Recipe(BaseModel("/a b/model", "encoder", "bert", "h"), {"a": TopTheta(keep=1.0)}), tmp_path / "plain")
    assert fits(json.loads((tmp_path / "plain" / "sparsify.json").read_text()))


def test_everything_that_it_requires_is_required(tmp_path: Path) -> None:
    data = written(tmp_path)
    assert sorted(SCHEMA["required"]) == sorted(data)
    for key in data:
        less = {name: value for name, value in data.items() if name != key}
        assert not fits(less)
        with pytest.raises((KeyError, UsageError)):
            _parse(less)


@pytest.mark.parametrize("value", [None, 5, "x", [], {}, True, {"a": 1}, 1, ["a"]], ids=str)
def test_other_types_are_refused_by_both(value: Any, tmp_path: Path) -> None:
    data = written(tmp_path)
    for key in data:
        changed = {**data, key: value}
        try:
            _parse(changed)
            parsed = True
        except (UsageError, KeyError, TypeError):
            parsed = False
        assert parsed == fits(changed), (key, value)


NO_MODELS = ["./here", "../up", "~/home", "a/b/c", "", "https://x/y", "a\\b", "org/"]


@pytest.mark.parametrize("id_", ["m", "org/name", "/abs/path with spaces", *NO_MODELS])
def test_names_of_base_models(id_: str, tmp_path: Path) -> None:
    data = written(tmp_path)
    data["base_model"]["id"] = id_
    try:
        _parse(data)
        parsed = True
    except UsageError:
        parsed = False
    assert parsed == fits(data) == (id_ not in NO_MODELS)


def test_defaults_are_left_to_the_methods() -> None:
    """A recipe that leaves a field out gets the default of the version that reads it, and writing fills it in."""
    assert method_to_dict(method_from_dict({"method": "clustered"}))["clusters"] == 100
