"""What comes with a model of sound: all of it, or nothing where it cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import tiny_speech
from hf_sparsify.patcher.binding.loading import load_model


def test_extractor_and_tokenizer_come_with_the_model(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_speech.save_ctc(tmp_path / "ctc")))
    assert loaded.base.task == "speech-ctc"
    assert loaded.extractor.sampling_rate == tiny_speech.RATE
    assert loaded.tokenizer.decode([5, 5, 0, 5, 4, 6]) == "aa b"


def test_a_model_without_them_is_loaded_all_the_same(tmp_path: Path) -> None:
    folder = tiny_speech.save_ctc(tmp_path / "ctc")
    (folder / "vocab.json").unlink()
    (folder / "processor_config.json").write_text("{oops")
    loaded = load_model(str(folder))
    assert (loaded.extractor, loaded.tokenizer) == (None, None)
