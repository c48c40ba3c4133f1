"""Where questions come from: a path or a name, the demo set, and the Hub without a connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation import sources
from hf_sparsify.evaluation.questions import Question
from hf_sparsify.evaluation.sources import is_path, load_questions

RECORDS: list[dict[str, Any]] = [
    {"id": "h1", "context": "The kiln holds six bowls.", "question": "How many bowls?", "answers": {"text": ["six"]}},
    {"id": "h2", "context": "Zoë paints boats green.", "question": "Who paints?", "answers": {"text": ["Zoë"]}},
]
QUESTIONS = (
    Question("h1", "The kiln holds six bowls.", "How many bowls?", ("six",)),
    Question("h2", "Zoë paints boats green.", "Who paints?", ("Zoë",)),
)


def write_lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_split_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a file has no splits"):
        load_questions(write_lines(tmp_path / "flat.jsonl", RECORDS), split="train")


def test_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="--dataset is empty"):
        load_questions(" ")


def test_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    (tmp_path / "mine").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/set").mkdir()
    paths = ["a.json", "org/a.parquet", "./a", "../a", "/a", "~/a", "a/b/c", "a b", "data/", "data/set", "mine", "."]
    assert [name for name in paths if not is_path(name)] == []
    assert [name for name in ("squad", "squad_v2", "org/name", "name", "a.b") if is_path(name)] == []


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "demo.json", RECORDS)
    asked: list[str] = []

    def demo_data_path(split: str) -> str:
        asked.append(split)
        return path

    monkeypatch.setattr(sources, "demo_data_path", demo_data_path)
    assert load_questions("demo").split == "validation"
    loaded = load_questions("demo", default_split="train")
    assert (loaded.name, loaded.split, loaded.questions) == ("demo", "train", QUESTIONS)
    assert asked == ["validation", "train"]
    with pytest.raises(UsageError, match="--split test: data set demo has the splits train, validation"):
        load_questions("demo", "test")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No connection, and caches of their own."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(sources, "_online", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("name", ["squad_v2", "someone/else", "word"])
def test_hub_out_of_reach(offline: Path, name: str) -> None:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DataError) as caught:
        load_questions(name)
    message = str(caught.value)
    repo = {"squad_v2": "rajpurkar/squad_v2"}.get(name, name)
    assert message.startswith(f"data set {name} ")
    assert message.endswith(f"hf download --repo-type dataset {repo}")
    assert "\n" not in message
    assert datasets.config.HF_HUB_OFFLINE is before


def hub_copy(folder: Path) -> None:
    """What `hf download --repo-type dataset rajpurkar/squad` leaves in the Hub's cache."""
    root = folder / "hub/datasets--rajpurkar--squad"
    revision = "0" * 40
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(revision)
    write_lines(snapshot / "train.jsonl", RECORDS[:1])
    write_lines(snapshot / "validation.jsonl", RECORDS)


def test_downloaded_copy_is_used_offline(offline: Path) -> None:
    hub_copy(offline)
    loaded = load_questions("squad")
    assert (loaded.name, loaded.split, loaded.questions) == ("squad", "validation", QUESTIONS)
    assert load_questions("squad", default_split="train").questions == QUESTIONS[:1]
    with pytest.raises(UsageError, match="--split dev: data set squad has the splits train, validation"):
        load_questions("squad", "dev")


def test_incomplete_copy_is_explained(offline: Path) -> None:
    hub_copy(offline)
    for file in (offline / "hub").rglob("*.jsonl"):
        file.unlink()
    with pytest.raises(DataError, match=r"data set squad \(rajpurkar/squad\) is not on this machine .* hf download"):
        load_questions("squad")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "cannot be reached"),
        (ValueError("Config name is missing.\nPick one"), r"cannot be loaded: Config name is missing\.$"),
        (RuntimeError(), "cannot be loaded: RuntimeError"),
    ],
)
def test_what_datasets_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=message) as caught:
        load_questions("squad")
    assert "\n" not in str(caught.value)


def test_unknown_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    def fail(path: str) -> None:
        raise DatasetNotFoundError(path)

    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match="someone/else is neither a file nor a data set"):
        load_questions("someone/else")


def test_offline_variable_is_obeyed_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail() -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", fail)
    assert not sources._online()


def test_hub_rows_are_checked_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", lambda path: {"validation": [RECORDS[0], {"text": "x"}]})
    with pytest.raises(DataError) as caught:
        load_questions("someone/else")
    assert str(caught.value) == "someone/else (validation): row 2: field 'id' is missing"
