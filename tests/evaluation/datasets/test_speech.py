"""Recordings with their texts: JSON Lines, CSV, audio folders, and rows of the Hub."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import soundfile
import tiny_speech
from datasets import Audio, Dataset, DatasetDict
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation import sources
from hf_sparsify.evaluation.items import Speech
from hf_sparsify.evaluation.sources import load_items


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What speech.jsonl holds, in a folder beside the working directory."""
    file = tiny_speech.save_recordings(tmp_path / "sound", 3)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return [json.loads(line) for line in file.read_text().splitlines()]


def save_csv(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_paths_count_from_the_file_and_every_format_has_one_fingerprint(recordings: list[dict[str, str]]) -> None:
    folder = Path("../sound")
    lines = load_items("../sound/speech.jsonl")
    (folder / "speech.json").write_text(json.dumps(recordings))
    save_csv(folder / "speech.csv", recordings)
    first = lines.items[0]
    assert isinstance(first, Speech)
    assert (first.id, first.text, first.speaker, first.sound.name) == (
        "u0",
        recordings[0]["text"],
        "s0",
        "../sound/r0.wav",
    )
    assert first.group == "s0"
    assert lines.dataset.name == "asr"
    for name in ("speech.json", "speech.csv"):
        assert load_items(f"../sound/{name}").fingerprint == lines.fingerprint
    assert load_items("asr=../sound/speech.jsonl").fingerprint == lines.fingerprint
    changed = tiny_speech.sound(0.3, seed=9)
    soundfile.write(folder / "r0.wav", changed, tiny_speech.RATE)
    assert load_items("../sound/speech.jsonl").fingerprint != lines.fingerprint


def test_an_audio_folder_is_named_by_itself(recordings: list[dict[str, str]]) -> None:
    rows = [{"file_name": row["audio"], "transcription": row["text"]} for row in recordings]
    save_csv(Path("../sound/metadata.csv"), rows)
    by_folder, by_file = load_items("../sound"), load_items("../sound/metadata.csv")
    assert by_folder.fingerprint == by_file.fingerprint
    assert [item.text for item in by_folder.items] == [row["text"] for row in recordings]
    assert [item.group for item in by_folder.items] == ["0", "1", "2"]
    Path("../sound/metadata.csv").rename("../sound/other.csv")
    told = (
        r"^\.\./sound is a directory; .* or a folder of sound with metadata\.csv, metadata\.jsonl or metadata\.parquet$"
    )
    with pytest.raises(DataError, match=told):
        load_items("../sound")
    with pytest.raises(DataError, match="no known data set has these fields: file_name, transcription"):
        load_items("../sound/other.csv")


def test_every_way_to_name_a_file_counts_from_the_list(
    recordings: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = (
        "r0.wav",
        {"path": "r1.wav"},
        {"path": "r2.wav", "bytes": None},
        "~/sound/r0.wav",
        {"path": "~/sound/r1.wav"},
    )
    records = [{"audio": path, "text": "a"} for path in paths]
    Path("../sound/ways.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    items = load_items("../sound/ways.jsonl").items
    assert [Path(item.sound.name).name for item in items] == ["r0.wav", "r1.wav", "r2.wav", "r0.wav", "r1.wav"]


def test_rows_of_the_hub_are_not_decoded(recordings: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"audio": {"path": row["audio"], "bytes": (Path("../sound") / row["audio"]).read_bytes()}, "text": row["text"]}
        | {"id": row["id"], "speaker_id": number}
        for number, row in enumerate(recordings)
    ]
    made = Dataset.from_list(rows).cast_column("audio", Audio(sampling_rate=8000))
    asked = []
    monkeypatch.setattr(
        sources, "_hub_splits", lambda *names: asked.append(names) or DatasetDict({"validation": made, "test": made})
    )
    items = load_items("librispeech", "test")
    assert asked == [("librispeech", "openslr/librispeech_asr", "clean")]
    assert [item.text for item in items.items] == [row["text"] for row in recordings]
    assert [item.speaker for item in items.items] == ["0", "1", "2"]
    assert items.items[2].sound.decoded(tiny_speech.RATE).shape == (0.6 * tiny_speech.RATE,)
    assert load_items("someone/speech").dataset.name == "asr"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"audio": "gone.wav", "text": "a"}, r"bad\.jsonl: line 1: there is no file \.\./sound/gone\.wav"),
        ({"audio": "r0.wav"}, r"line 1: there is no text next to the sound; the field may be text, sentence"),
        ({"audio": "r0.wav", "text": " "}, r"line 1: field 'text' is blank"),
        ({"audio": 3, "text": "a"}, r"line 1: field 'audio' must name a file, not a number"),
        ({"audio": "bad.jsonl", "text": "a"}, r"bad\.jsonl is no sound that can be read"),
    ],
)
def test_bad_records(record: dict[str, object], told: str, recordings: list[dict[str, str]]) -> None:
    Path("../sound/bad.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=told):
        load_items("../sound/bad.jsonl")


def test_sound_of_many_formats_is_heard(tmp_path: Path) -> None:
    whole = io.BytesIO()
    soundfile.write(whole, tiny_speech.sound(0.2), 16000, format="OGG")
    (tmp_path / "a.ogg").write_bytes(whole.getvalue())
    (tmp_path / "speech.jsonl").write_text(json.dumps({"audio": "a.ogg", "sentence": "a"}))
    (item,) = load_items(str(tmp_path / "speech.jsonl")).items
    assert item.sound.samples == 3200
