"""Recorded sound: what is read, resampled, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import soundfile
import tiny_speech
from hf_sparsify.errors import DataError, SparsifyError
from hf_sparsify.evaluation import speech_extra
from hf_sparsify.evaluation.sound import sound_of


def write(file: Path, values: numpy.ndarray, rate: int, **options: str) -> str:
    soundfile.write(file, values, rate, **options)
    return str(file)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_is_its_samples(suffix: str, tmp_path: Path) -> None:
    values = tiny_speech.sound(0.2)
    sound = sound_of(write(tmp_path / f"a{suffix}", values, 16000), "line 1")
    assert (sound.samples, sound.rate, sound.samples_at(16000)) == (3200, 16000, 3200)
    decoded = sound.decoded(16000)
    assert decoded.dtype == numpy.float32
    assert numpy.abs(decoded - values).max() < 1e-4  # 16 bits


def test_resampling_keeps_a_tone_and_channels_are_averaged(tmp_path: Path) -> None:
    def tone(rate: int) -> numpy.ndarray:
        return numpy.sin(2 * numpy.pi * 440 * numpy.arange(rate) / rate).astype(numpy.float32)

    both = numpy.stack([0.75 * tone(44100), 0.25 * tone(44100)], 1)
    sound = sound_of(write(tmp_path / "a.wav", both, 44100), "line 1")
    decoded = sound.decoded(16000)
    assert len(decoded) == sound.samples_at(16000) == 16000
    assert numpy.abs(decoded - 0.5 * tone(16000))[200:-200].max() < 2e-3


def test_bytes_are_a_file_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    write(file, tiny_speech.sound(0.1), 16000)
    from_bytes = sound_of({"path": "a.wav", "bytes": file.read_bytes()}, "row 1")
    from_file = sound_of({"path": str(file), "bytes": None}, "row 1")
    assert from_bytes.sha256 == from_file.sha256
    assert (from_bytes.decoded(8000) == from_file.decoded(8000)).all()
    assert "RIFF" not in repr(from_bytes)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound at all")
    write(tmp_path / "silent.wav", numpy.zeros(0, numpy.float32), 16000)
    write(tmp_path / "slow.wav", numpy.zeros(10, numpy.float32), 100)
    for name, told in {
        "missing.wav": r"^line 3: there is no file .*missing\.wav$",
        "empty.wav": r"^line 3: .*empty\.wav is empty$",
        "text.wav": r"^line 3: .*text\.wav is no sound that can be read, such as WAV or FLAC$",
        "silent.wav": r"^line 3: .*silent\.wav holds no samples$",
        "slow.wav": r"^line 3: .*slow\.wav has 100 samples per second, too few for speech$",
        "": r"^line 3: cannot read .*: Is a directory$",
    }.items():
        with pytest.raises(DataError, match=told):
            sound_of(str(tmp_path / name), "line 3")
    for value in (None, 3, "", {"path": None}):
        with pytest.raises(DataError, match=r"^line 3: field 'audio' must name a file, not "):
            sound_of(value, "line 3")


def test_what_breaks_after_it_was_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    sound = sound_of(write(file, numpy.full(100, numpy.nan, numpy.float32), 16000, subtype="FLOAT"), "line 1")
    with pytest.raises(DataError, match=r"a\.wav holds samples that are no finite numbers"):
        sound.decoded(16000)
    write(file, numpy.zeros(40, numpy.float32), 16000)
    with pytest.raises(DataError, match=r"a\.wav breaks off after 40 of its 100 samples"):
        sound.decoded(16000)
    file.unlink()
    with pytest.raises(DataError, match=r"a\.wav cannot be read as sound"):
        sound.decoded(16000)


def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_extra, "find_spec", lambda name: None)
    with pytest.raises(SparsifyError, match=r"^speech needs jiwer and soundfile: pip install 'hf-sparsify\[speech\]'$"):
        sound_of("a.wav", "line 1")
