"""Where items come from: a path or a name, the demo set, and the Hub without a connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation import sources
from hf_sparsify.evaluation.items import Choice, Labelled, Question
from hf_sparsify.evaluation.sources import is_path, load_items

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
        load_items(write_lines(tmp_path / "flat.jsonl", RECORDS), split="train")


def test_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="--dataset is empty"):
        load_items(" ")


def test_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    (tmp_path / "mine").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/set").mkdir()
    paths = ["a.json", "org/a.parquet", "./a", "../a", "/a", "~/a", "a/b/c", "a b", "data/", "data/set", "mine", "."]
    assert [name for name in paths if not is_path(name)] == []
    (tmp_path / "text").mkdir()
    names = ("squad", "squad_v2", "text", "arc_easy", "org/name", "name", "a.b")
    assert [name for name in names if is_path(name)] == []


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "demo.json", RECORDS)
    asked: list[str] = []

    def demo_data_path(split: str) -> str:
        asked.append(split)
        return path

    monkeypatch.setattr(sources, "demo_data_path", demo_data_path)
    assert load_items("demo").split == "validation"
    loaded = load_items("demo", default_split="train")
    assert (loaded.name, loaded.split, loaded.items) == ("demo", "train", QUESTIONS)
    assert asked == ["validation", "train"]
    with pytest.raises(UsageError, match="--split test: data set demo has the splits train, validation"):
        load_items("demo", "test")


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
        load_items(name)
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
    loaded = load_items("squad")
    assert (loaded.name, loaded.split, loaded.items) == ("squad", "validation", QUESTIONS)
    assert load_items("squad", default_split="train").items == QUESTIONS[:1]
    with pytest.raises(UsageError, match="--split dev: data set squad has the splits train, validation"):
        load_items("squad", "dev")


def test_incomplete_copy_is_explained(offline: Path) -> None:
    hub_copy(offline)
    for file in (offline / "hub").rglob("*.jsonl"):
        file.unlink()
    with pytest.raises(DataError, match=r"data set squad \(rajpurkar/squad\) is not on this machine .* hf download"):
        load_items("squad")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "cannot be reached"),
        (ValueError("Config name is missing.\nPick one"), r"cannot be loaded: Config name is missing\.$"),
        (RuntimeError(), "cannot be loaded: RuntimeError"),
    ],
)
def test_what_datasets_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(path: str, config: str | None) -> None:
        raise error

    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=message) as caught:
        load_items("squad")
    assert "\n" not in str(caught.value)


def test_unknown_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    def fail(path: str, config: str | None) -> None:
        raise DatasetNotFoundError(path)

    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match="someone/else is neither a file nor a data set"):
        load_items("someone/else")


def test_offline_variable_is_obeyed_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail() -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", fail)
    assert not sources._online()


def test_hub_rows_are_checked_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", lambda path, config: {"validation": [RECORDS[0], {"text": "x"}]})
    with pytest.raises(DataError) as caught:
        load_items("someone/else")
    assert str(caught.value) == "someone/else (validation): row 2: field 'id' is missing"


def write_copy(folder: Path, repo: str, files: dict[str, list[dict[str, Any]]], card: str = "") -> None:
    """What `hf download --repo-type dataset` leaves in the Hub's cache."""
    root = folder / "hub" / f"datasets--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("1" * 40)
    (snapshot / "README.md").write_text(f"---\n{card}---\n" if card else "A data set.\n")
    for name, records in files.items():
        (snapshot / name).parent.mkdir(exist_ok=True)
        write_lines(snapshot / name, records)


CARD = """configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train.jsonl}
  - {split: validation, path: sst2/validation.jsonl}
- config_name: mnli
  data_files:
  - {split: train, path: mnli/train.jsonl}
  - {split: validation_matched, path: mnli/matched.jsonl}
  - {split: validation_mismatched, path: mnli/mismatched.jsonl}
"""


def test_configs_of_a_downloaded_copy(offline: Path) -> None:
    fine = {"sentence": "A fine film.", "label": 1, "idx": 0}
    follows = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 4}
    files = {
        "sst2/train.jsonl": [fine, {**fine, "idx": 1}],
        "sst2/validation.jsonl": [fine],
        "mnli/train.jsonl": [follows],
        "mnli/matched.jsonl": [follows, {**follows, "idx": 5, "label": 2}],
        "mnli/mismatched.jsonl": [follows],
    }
    write_copy(offline, "nyu-mll/glue", files, CARD)
    reviews = load_items("sst2")
    assert (reviews.name, reviews.split, reviews.dataset.name) == ("sst2", "validation", "sst2")
    assert reviews.items == (Labelled("0", ("A fine film.",), 1),)
    assert len(load_items("sst2", default_split="train")) == 2
    pairs = load_items("mnli")
    assert (pairs.split, [item.label for item in pairs.items]) == ("validation_matched", [0, 2])
    assert load_items("mnli", "validation_mismatched").split == "validation_mismatched"
    with pytest.raises(UsageError, match="--split test: data set mnli has the splits train, validation_matched"):
        load_items("mnli", "test")
    with pytest.raises(DataError, match=r"data set cola \(nyu-mll/glue\) cannot be loaded: "):
        load_items("cola")


def test_one_config_used_before_says_nothing_of_another(offline: Path) -> None:
    """`datasets` keeps each config of a repository by itself."""
    kept = offline / "datasets/nyu-mll___glue"
    (kept / "cola/0.0.0/abc").mkdir(parents=True)
    assert sources._is_in_datasets_cache("nyu-mll/glue", "cola")
    assert sources._is_in_datasets_cache("nyu-mll/glue", None)
    assert not sources._is_in_datasets_cache("nyu-mll/glue", "sst2")


def test_every_named_data_set_is_asked_for_by_repository_and_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, config: str | None) -> dict[str, list[dict[str, Any]]]:
        asked.append((path, config))
        return {"train": [], "validation": []}

    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("arc_challenge", "openbookqa", "commonsense_qa", "hellaswag", "boolq", "rte", "wikitext"):
        with pytest.raises(DataError, match=rf"{name} \(validation\) holds no items"):
            load_items(name)
    assert asked == [
        ("allenai/ai2_arc", "ARC-Challenge"),
        ("allenai/openbookqa", "main"),
        ("tau/commonsense_qa", None),
        ("Rowan/hellaswag", None),
        ("google/boolq", None),
        ("nyu-mll/glue", "rte"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    ]


def on_the_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], features: Any = None) -> None:
    from datasets import Dataset

    rows_there = Dataset.from_list(rows, features=features)
    monkeypatch.setattr(sources, "_online", lambda: True)
    monkeypatch.setattr("datasets.load_dataset", lambda path, config: {"validation": rows_there})


def test_hub_rows_of_multiple_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"text": ["a cow", "an owl"], "label": ["1", "2"]}
    on_the_hub(monkeypatch, [{"id": "x", "question": "What flies?", "choices": choices, "answerKey": "2"}])
    assert load_items("arc_easy").items == (Choice("x", "What flies?", ("a cow", "an owl"), 1),)


def test_hub_rows_of_wikitext_are_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_hub(monkeypatch, [{"text": ""}, {"text": " = Owl = \n"}, {"text": ""}, {"text": " It flies . \n"}])
    (item,) = load_items("wikitext").items
    assert (item.id, item.document, item.text) == ("wikitext", "", "\n = Owl = \n\n It flies . ")


def test_names_of_labels_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import ClassLabel, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["world", "arts", "sport"])})
    on_the_hub(monkeypatch, [{"text": "A goal.", "label": 2}, {"text": "A play.", "label": 1}], features)
    loaded = load_items("someone/news")
    assert (loaded.dataset.name, loaded.dataset.labels) == ("labels", ("world", "arts", "sport"))
    assert [item.label for item in loaded.items] == [2, 1]
