"""Loading: which device, and one sentence for what cannot be loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import torch
from families.every import EVERY
from hf_sparsify.errors import SparsifyError, UsageError
from hf_sparsify.patcher.binding import loading
from hf_sparsify.patcher.binding.loading import LoadOptions, load_model, options_for, resolve_device
from hf_sparsify.patcher.binding.tasks import WITHOUT_TEXT
from hf_sparsify.patcher.recipe import BaseModel
from tiny_language_models import edit_config


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart", "bert"])
def test_every_kind_of_model_loads(name: str, tmp_path: Path) -> None:
    folder = tiny_language_models.save(name, tmp_path / name)
    loaded = load_model(str(folder))
    assert (loaded.base.id, loaded.base.model_type) == (str(folder.resolve()), name)
    assert loaded.base.revision is None
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer.padding_side == ("left" if loaded.base.task == "causal-lm" else "right")
    assert loaded.tokenizer.pad_token_id == 0


@pytest.mark.parametrize("name", ["vit", "dinov2", "wav2vec2", "hubert", "whisper"])
def test_models_of_images_and_sound_load_with_their_heads_and_without_a_tokenizer(name: str, tmp_path: Path) -> None:
    made = EVERY[name].build()
    made.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.model) is type(made)
    assert loaded.base.task in WITHOUT_TEXT
    assert loaded.tokenizer is None


def test_a_relative_folder_is_remembered_by_its_full_path(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    assert load_model("llama").base.id == str(llama.resolve())


def test_dtype(llama: Path) -> None:
    assert load_model(str(llama), LoadOptions(dtype="bfloat16")).model.dtype == torch.bfloat16


def test_without_a_padding_token_the_end_token_pads(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    tokenizer = load_model(str(copy)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


@pytest.mark.parametrize("device", ["bogus", "gpu", "meta", "cuda:x", ""])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(UsageError, match=r"device must be auto, cpu, mps or cuda\[:n\]"):
        resolve_device(device)


def test_devices_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device cuda:1 is not available here: torch sees 0 CUDA devices"):
        resolve_device("cuda:1")
    with pytest.raises(UsageError, match="device mps is not available here"):
        resolve_device("mps")


def test_devices_that_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="torch sees 2 CUDA devices"):
        resolve_device("cuda:2")


def refused(name: str, **options: Any) -> str:
    with pytest.raises(SparsifyError) as caught:
        load_model(name, LoadOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_bad_options_are_usage_errors(llama: Path) -> None:
    for options in ({"dtype": "int8"}, {"device": "gpu"}):
        with pytest.raises(UsageError):
            load_model(str(llama), LoadOptions(**options))
    with pytest.raises(UsageError, match="name is empty"):
        load_model(" ")


def test_a_name_that_is_nowhere() -> None:
    message = refused("no-such-org/no-such-model")
    assert "unknown model 'no-such-org/no-such-model'" in message
    assert "hf download no-such-org/no-such-model" in message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refused("./nowhere") == "there is no folder ./nowhere"
    assert refused(str(tmp_path / "nowhere")) == f"there is no folder {tmp_path / 'nowhere'}"


def test_a_file_is_no_model(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is a file: name the folder" in refused(str(tmp_path / "model.gguf"))
    # The library would take it for a model.
    assert "is a file: name the folder" in refused(str(copy / "config.json"))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert refused(str(tmp_path)) == f"{tmp_path} is a folder but not a model (it has no config.json)"
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    assert refused(str(tmp_path)).endswith("pass --gguf-file weights.gguf")


def test_damaged_folders(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert "cannot be loaded: Error while deserializing header" in refused(str(copy))
    weights.unlink()
    assert "no file named model.safetensors" in refused(str(copy))
    weights.write_bytes(whole)
    edit_config(copy, intermediate_size=44)
    assert "other shapes than its config.json says" in refused(str(copy))
    edit_config(copy, model_type="unheard-of")
    assert "unheard-of" in refused(str(copy))
    (copy / "config.json").write_text("{")
    assert "not a valid JSON file" in refused(str(copy))


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert f"{copy} has no tokenizer that can be loaded" in refused(str(copy))


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    proof = copy.parent / "ran"
    (copy / "own.py").write_text(f"open({str(proof)!r}, 'w')\n")
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    assert "comes with its own code: read that code, then pass --trust-remote-code" in refused(str(copy))
    assert not proof.exists()


def test_missing_weights_are_warned_about(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(str(copy))
    assert not caplog.records
    edit_config(copy, num_hidden_layers=3)
    load_model(str(copy))
    [record] = [record for record in caplog.records if record.name == loading.__name__]
    assert record.levelno == logging.WARNING
    assert "has no weights for 9 parameters, e.g. model.layers.2" in record.getMessage()


def test_what_the_recipe_recorded_is_used_where_nothing_is_said() -> None:
    made_for = BaseModel("org/name", "causal-lm", "llama", "0", revision="abc", gguf_file="q.gguf")
    assert options_for(made_for, LoadOptions(dtype="float32")) == LoadOptions("float32", "auto", "abc", False, "q.gguf")
    assert options_for(made_for, LoadOptions(revision="new", gguf_file="other.gguf")) == LoadOptions(
        revision="new", gguf_file="other.gguf"
    )


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", "x"), ("architectures", 3), ("dtype", "../x"), ("vocab_size", 0)]
)
def test_nonsense_in_a_configuration(field: str, value: Any, copy: Path) -> None:
    edit_config(copy, **{field: value})
    assert "cannot be loaded" in refused(str(copy))


def test_accelerate_places_a_model(llama: Path) -> None:
    loaded = load_model(str(llama), LoadOptions(device_map="auto"))
    assert torch.equal(loaded.model.lm_head.weight, load_model(str(llama)).model.lm_head.weight)
    with pytest.raises(UsageError, match="--device-map and --device exclude each other"):
        load_model(str(llama), LoadOptions(device="cpu", device_map="auto"))
    with pytest.raises(SparsifyError, match="cannot be loaded"):
        load_model(str(llama), LoadOptions(device_map="nowhere"))


@pytest.mark.parametrize("name", ["a" * 5000, "/" + "a" * 300, "/a\ud800"])
def test_names_that_no_file_system_takes(name: str) -> None:
    assert "\n" not in refused(name)
