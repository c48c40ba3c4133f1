"""sensitivity.json: what is written is read, and what is no map is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify import DataError, SparsifyError
from hf_sparsify.tuning.sensitivity import PREDICTED_KL, ModuleSensitivity, SensitivityMap
from hf_sparsify.tuning.sensitivity_file import load_sensitivity, save_sensitivity, stored_map

HALF = [1.0, 0.5]
FOUND = SensitivityMap(
    HALF,
    3,
    PREDICTED_KL,
    {
        "a": ModuleSensitivity(
            "self", "decoder", 0, 2, [0.0, 0.1], [0.0, 0.2], [[0.0, 0.3]] * 2, HALF, HALF, HALF, 9, 4, 8
        ),
        "b": ModuleSensitivity(
            "feed-forward", "encoder", None, None, [0.0, 1.0], [0.0, 0.2], None, HALF, None, None, 9, 0, 8
        ),
    },
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "deep" / "sensitivity.json"
    save_sensitivity(FOUND, file, key="k", dataset={"name": "demo"})
    return file


def test_a_map_is_read_as_it_was_written(path: Path) -> None:
    assert load_sensitivity(path) == (FOUND, "k")
    content = json.loads(path.read_text())
    assert (content["schema_version"], content["items"], content["dataset"]) == (1, 3, {"name": "demo"})
    assert content["error_is"].startswith("predicted KL")


def test_a_stored_map_is_taken_for_its_key_alone(path: Path) -> None:
    assert stored_map(path, "k") == FOUND
    assert stored_map(path, "other") is None
    path.write_text("{")
    assert stored_map(path, "k") is None
    path.unlink()
    assert stored_map(path, "k") is None


CHANGES: dict[str, Any] = {
    "schema_version": 2,
    "keeps": [0.5, 1.0],
    "items": -1,
    "error_is": "guess",
    "modules": {},
    "modules.a.error": [0.0],
    "modules.a.kept": [1.0, "x"],
    "modules.a.kind": "other",
    "modules.a.width": 1.5,
    "modules.a.error_by_head": [[0.0]],
    "modules.b.error": None,
    "modules.b": [],
}


@pytest.mark.parametrize("place", CHANGES)
def test_what_is_no_map_is_refused_with_the_file(place: str, path: Path) -> None:
    content = json.loads(path.read_text())
    *parents, last = place.split(".")
    part = content
    for parent in parents:
        part = part[parent]
    part[last] = CHANGES[place]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"sensitivity\.json is malformed"):
        load_sensitivity(path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": NaN}', "{" * 5000])
def test_no_json_is_refused_with_the_file(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=r"sensitivity\.json"):
        load_sensitivity(path)


def test_a_missing_file_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sparsify tune"):
        load_sensitivity(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsifyError, match="cannot write the sensitivity map"):
        save_sensitivity(FOUND, tmp_path / "file" / "x.json", key="k", dataset={})
