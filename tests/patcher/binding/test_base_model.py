"""Which model a recipe is for: what its hash sees, and where it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import transformers
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.binding.base_model import config_hash, find_base_model
from hf_sparsify.patcher.binding.loading import load_model
from hf_sparsify.patcher.recipe import BaseModel
from tiny_language_models import edit_config


def hash_of(name: str, **changes: Any) -> str:
    _, config, options = tiny_language_models._FAMILIES[name]
    return config_hash(getattr(transformers, config)(**{**options, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"architectures": ["LlamaModel"]},
        {"use_cache": False},
        {"attention_dropout": 0.1},
        {"eos_token_id": 5},
        {"initializer_range": 0.5},
        {"_name_or_path": "elsewhere"},
        {"transformers_version": "4.0"},
        {"attn_implementation": "eager"},
        {"max_position_embeddings": 1024},
    ],
)
def test_hash_ignores_what_fine_tuning_changes(changes: dict[str, Any]) -> None:
    assert hash_of("llama", **changes) == hash_of("llama")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"hidden_size": 64}),
        ("llama", {"num_hidden_layers": 3}),
        ("llama", {"num_attention_heads": 8}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"intermediate_size": 44}),
        ("llama", {"vocab_size": 500}),
        ("gpt2", {"n_layer": 3}),
        ("t5", {"num_layers": 3}),
        ("t5", {"num_decoder_layers": 3}),
        ("t5", {"d_kv": 4}),
        ("bart", {"decoder_layers": 3}),
    ],
)
def test_hash_sees_another_shape(name: str, changes: dict[str, Any]) -> None:
    assert hash_of(name, **changes) != hash_of(name)


def test_hash_sees_the_shape_of_a_configuration_inside() -> None:
    small = transformers.Gemma3Config(text_config={"num_hidden_layers": 2})
    large = transformers.Gemma3Config(text_config={"num_hidden_layers": 3})
    assert config_hash(small) == config_hash(transformers.Gemma3Config(text_config={"num_hidden_layers": 2}))
    assert config_hash(small) != config_hash(large)


def test_hash_is_the_same_after_saving(llama: Path) -> None:
    assert load_model(str(llama)).base.config_hash == hash_of("llama")


def base(folder: Path) -> BaseModel:
    return load_model(str(folder)).base


@pytest.mark.parametrize("place", ["recipe", "beside", "working directory"])
def test_a_moved_model_is_found_by_its_hash(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    made_for = base(copy)
    recipe, elsewhere = tmp_path / "recipes" / "one", tmp_path / "elsewhere"
    recipe.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    new = {"recipe": recipe, "beside": recipe.parent, "working directory": elsewhere}[place] / "llama"
    copy.rename(new)
    assert Path(find_base_model(made_for, recipe)).resolve() == new
    edit_config(new, num_hidden_layers=3)
    with pytest.raises(SparsifyError, match=r"is not there any more: say where it is with --model"):
        find_base_model(made_for, recipe)


@pytest.mark.parametrize("id_", ["a" * 5000, "/" + "a" * 300, "/a\ud800"])
def test_names_that_no_file_system_takes(id_: str, tmp_path: Path) -> None:
    base = BaseModel(id_, "causal-lm", "llama", "0")
    if id_.startswith("/"):
        with pytest.raises(SparsifyError, match="is not there any more"):
            find_base_model(base, tmp_path)
    else:
        assert find_base_model(base, tmp_path) == id_


def test_a_folder_with_the_name_of_a_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SparsifyError, match=r"for org/name on the Hub, and here is a folder of that name"):
        find_base_model(BaseModel("org/name", "causal-lm", "llama", "0"), tmp_path)


def test_names_and_folders_that_did_not_move_are_taken_as_they_are(copy: Path) -> None:
    assert find_base_model(base(copy), copy) == str(copy.resolve())
    assert find_base_model(BaseModel("org/name", "causal-lm", "llama", "0"), copy) == "org/name"
