"""Whole commands on models of speech: patch, calibrate, eval, sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import tiny_speech
from command_line import Sparsify, refused


@pytest.fixture(scope="session")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    tiny_speech.save_ctc(folder / "ctc")
    tiny_speech.save_whisper(folder / "whisper")
    tiny_speech.save_recordings(folder / "sound", 6)
    return folder


@pytest.fixture(autouse=True)
def speech(heard: Path, work: Path) -> None:
    for name in ("ctc", "whisper", "sound"):
        (work / name).symlink_to(heard / name)


def results(folder: Path | str) -> dict[str, object]:
    (file,) = Path(folder).glob("eval/*/results.json")
    made: dict[str, object] = json.loads(file.read_text())
    return made


def test_clustered_on_a_ctc_model(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "ctc", "--attention", "clustered", "--clusters", "8", "--k", "4")
    assert done.code == 0
    assert "wrote sparsified; next: sparsify eval --dataset RECORDINGS" in done.out
    assert "ok padding and batching do not matter" in " ".join(done.out.split())
    done = sparsify("eval", "--task", "asr", "-d", "sound/speech.jsonl")
    assert done.code in (0, 3)
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert any(row.startswith("WER, all words ") for row in rows)
    assert any(row.startswith("CER, all characters ") for row in rows)
    assert any("3 groups: recordings of one speaker are not independent" in row for row in rows)
    found = results("sparsified")
    assert (found["task"], found["primary"]) == ("asr", "word_accuracy")
    assert found["kept"]["total"]["cluster_scores_share"] < 0.5  # type: ignore[index]
    (lines,) = Path("sparsified").glob("eval/*/predictions.jsonl")
    first = json.loads(lines.read_text().splitlines()[0])
    assert (first["id"], first["tokens"]) == ("u0", 4800)
    assert set(first["dense"]) == {"answer", "margin", "word_accuracy", "character_accuracy", "exact"}
    before = lines.read_bytes()
    assert "nothing was run" in sparsify("eval", "-d", "sound/speech.jsonl").out
    assert "wrote" in sparsify("eval", "-d", "sound/speech.jsonl", "--no-cache").err
    assert lines.read_bytes() == before


def test_whisper_is_clustered_in_its_encoder_alone(sparsify: Sparsify) -> None:
    refused(sparsify("patch", "whisper", "--attention", "clustered"), 4, "--stack encoder selects an encoder alone")
    options = ("--attention", "clustered", "--clusters", "8", "--stack", "encoder", "--no-verify")
    assert sparsify("patch", "whisper", *options).code == 0
    done = sparsify("eval", "-d", "sound/speech.jsonl")
    assert done.code in (0, 3)
    assert "1 items longer than what the model can read at once" in done.out
    assert results("sparsified")["max_new_tokens"] == 24


@pytest.mark.parametrize("name", ["ctc", "whisper"])
def test_calibrated_and_saved_with_the_model(name: str, sparsify: Sparsify) -> None:
    done = sparsify("patch", name, "--k", "4", "--save-model", "--no-verify")
    assert done.code == 0
    assert "next: sparsify calibrate --dataset RECORDINGS" in done.out
    done = sparsify("calibrate", "-d", "sound/speech.jsonl", "--samples", "3")
    assert done.code == 0
    assert "next: sparsify eval --dataset RECORDINGS" in done.out
    assert sparsify("eval", "-d", "sound/speech.jsonl", "--limit", "4", "--model", "sparsified").code in (0, 3)
    found = results("sparsified")
    assert "top-theta" in str(found["method"])
    assert found["kept"]["total"]["kept_per_k"] > 0.5  # type: ignore[index]


@pytest.mark.slow
def test_a_sweep_over_recordings(sparsify: Sparsify) -> None:
    options = ("--methods", "top-k,clustered", "--k", "4,16", "--dataset", "sound/speech.jsonl")
    done = sparsify("sweep", "ctc", *options)
    assert done.code in (0, 3), done.err
    assert "word acc." in done.out


def test_refusals(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "ctc", "--k", "4", "--no-verify").code == 0
    refused(sparsify("eval"), 2, "hears speech: name recordings with their texts with --dataset")
    refused(sparsify("eval", "-d", "q.jsonl"), 2, "answers need a model for causal-lm")
    wrong = "recordings need a model for speech-ctc or speech-seq2seq"
    refused(sparsify("eval", "llama", "-d", "sound/speech.jsonl"), 2, wrong)
    refused(sparsify("eval", "-d", "sound/speech.jsonl", "--distractors", "2"), 2, "has no questions")
    refused(
        sparsify("eval", "-d", "sound/speech.jsonl", "--task", "qa"), 2, "is for speech recognition, and --task qa asks"
    )
    refused(sparsify("eval", "-d", "q.jsonl", "--task", "asr"), 2, "is for question answering, and --task asr asks")
    refused(sparsify("eval", "-d", "q.jsonl", "--task", "hearing"), 2, "--task hearing: there are qa, ")
    (work / "silent.jsonl").write_text(json.dumps({"audio": "sound/r0.wav", "text": "?!"}))
    refused(sparsify("eval", "-d", "silent.jsonl"), 1, "no item of silent.jsonl can be evaluated: 1 whose text has no")


def test_a_sweep_cannot_time_models_of_speech(sparsify: Sparsify, work: Path) -> None:
    options = ("--methods", "top-k", "--k", "4", "--dataset", "sound/speech.jsonl", "--bench")
    refused(sparsify("sweep", "ctc", *options), 2, "does not read text alone, which is what bench measures on")
    assert not (work / "sparsified-sweep").exists()


@pytest.mark.parametrize("name", ["ctc", "whisper"])
def test_odd_recordings_are_left_out(name: str, sparsify: Sparsify, work: Path) -> None:
    odd = [
        {"audio": "blip.wav", "text": "abc"},
        {"audio": "sound/r0.wav", "text": "..."},
        {"audio": "sound/r1.wav", "text": "abcdefgh " * 9},
        {"audio": "sound/r2.wav", "text": "ab cd"},
    ]
    soundfile.write(work / "blip.wav", tiny_speech.sound(0.002), tiny_speech.RATE)
    (work / "odd.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in odd))
    assert sparsify("patch", name, "--k", "4", "--no-verify").code == 0
    done = sparsify("eval", "-d", "odd.jsonl")
    assert done.code in (0, 3), done.err
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert any(row.endswith("left out 1 items whose text has no words") for row in rows)
    assert any(row.endswith("left out 1 items too short for one frame") for row in rows) == (name == "ctc")
    assert sparsify("calibrate", "-d", "odd.jsonl").code == 0
