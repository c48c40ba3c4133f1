"""`sparsify inspect`, from configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from command_line import Sparsify, files, refused


def save(folder: Path, config: Any, architecture: str) -> str:
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return str(folder)


def results(sparsify: Sparsify, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = sparsify("inspect", *arguments, "--json")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_decoder(sparsify: Sparsify, work: Path) -> None:
    before = files(work)
    done = sparsify("inspect", "llama", "--lengths", "16,4k")
    assert (done.code, done.err) == (0, "loading llama ...\n")
    assert "model.layers.0-1.self_attn" in done.out
    assert "prefill, beyond its " in done.out
    assert "at 16 tokens attention is" in done.out
    assert files(work) == before


def test_all_of_it_as_json(sparsify: Sparsify) -> None:
    found = results(sparsify, "demo-llama", "--lengths", "512,1k")
    assert (found["model"], found["class"], found["positions"]) == ("demo-llama", "LlamaForCausalLM", 512)
    assert [module["name"] for module in found["attention"]] == [f"model.layers.{i}.self_attn" for i in range(4)]
    assert [entry["beyond_positions"] for entry in found["lengths"]] == [False, True]
    for entry in found["lengths"]:
        prefill, decode = entry["phases"]["prefill"], entry["phases"]["decode"]
        assert prefill["ceiling"] == 1 / (1 - prefill["shares"]["attention"])
        read = decode["cache_bytes"] / (decode["cache_bytes"] + decode["weight_bytes"])
        assert decode["shares_read"]["attention"] == read
        assert decode["ceiling"] == pytest.approx(1 / (1 - read))
    assert len(found["sentences"]) == 2
    assert "512 tokens" in found["sentences"][0]


def test_every_module_has_its_line_if_asked_for(sparsify: Sparsify) -> None:
    out = sparsify("inspect", "demo-t5", "--modules", "--lengths", "8").out
    assert sum(line.startswith("decoder.block.1.") for line in out.splitlines()) == 3


def test_a_recipe(sparsify: Sparsify, work: Path) -> None:
    assert (
        sparsify("patch", "llama", "--k", "4", "--layers", "1", "--ffn", "top-k", "-o", "one", "--no-verify").code == 0
    )
    found = results(sparsify, "one", "--lengths", "32")
    assert [module["planned"] for module in found["attention"]] == [None, "top-k, k = 4, sdc+vmc"]
    phases = found["lengths"][0]["phases"]
    shares = phases["prefill"]["shares"]
    assert shares["patched"] == pytest.approx((shares["attention"] + shares["feed_forward"]) / 2)
    read = phases["decode"]["shares_read"]
    assert read["patched"] == pytest.approx((read["attention"] + read["feed_forward"]) / 2)
    assert found["recipe"] == "one"
    assert "the recipe's modules" in found["sentences"][0]
    refused(sparsify("inspect", "one", "--model", "other"), 4, "has another shape")
    refused(sparsify("inspect", "llama", "--model", "other"), 2, "--model goes with a recipe")


def test_attention_outside_the_interface(sparsify: Sparsify, work: Path) -> None:
    name = save(work / "bloom", transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4), "BloomForCausalLM")
    found = results(sparsify, name, "--lengths", "16")
    assert [module["route"] for module in found["attention"]] == ["interception"] * 2
    assert found["not_patchable"] == []
    assert found["interception"]["modules"] == [module["name"] for module in found["attention"]]
    assert found["lengths"][0]["phases"]["prefill"]["ceiling"] == 1
    assert "none of it becomes faster" in found["sentences"][0]
    assert "interception: accuracy only, in 2 modules (BloomAttention)" in sparsify("inspect", name).out


def test_nothing_that_can_be_patched(sparsify: Sparsify, work: Path) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1)
    name = save(work / "mamba", config, "MambaForCausalLM")
    found = results(sparsify, name, "--lengths", "16", code=4)
    assert len(found["not_patchable"]) == 2


def test_a_mixture_of_experts(sparsify: Sparsify, work: Path) -> None:
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    found = results(sparsify, save(work / "mixtral", config, "MixtralForCausalLM"), "--lengths", "16")
    assert len(found["attention"]) == 1
    assert "is a mixture of experts" in found["not_patchable"][0]


def test_models_without_tokens(sparsify: Sparsify, work: Path) -> None:
    config = transformers.ViTConfig(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    done = sparsify("inspect", save(work / "vit", config, "ViTForImageClassification"))
    assert done.code == 0
    assert "layers.0-1.attention" in done.out
    assert "the work is not counted: ViTForImageClassification takes no tokens" in done.out


def test_a_speech_model_has_one_length(sparsify: Sparsify, work: Path) -> None:
    name = save(work / "whisper", transformers.WhisperConfig(), "WhisperForConditionalGeneration")
    found = results(sparsify, name, "--lengths", "16,32")
    assert [entry["tokens"] for entry in found["lengths"]] == [1500]
    assert "patch it from Python" not in sparsify("inspect", name).out


def test_a_model_that_the_commands_do_not_load(sparsify: Sparsify, work: Path) -> None:
    config = transformers.TimeSeriesTransformerConfig(prediction_length=4, d_model=32)
    done = sparsify("inspect", save(work / "series", config, "TimeSeriesTransformerForPrediction"))
    assert "the commands load no TimeSeriesTransformerForPrediction: patch it from Python" in done.out


def test_a_model_that_does_not_run_on_meta(sparsify: Sparsify, work: Path) -> None:
    found = results(sparsify, save(work / "clip", transformers.CLIPConfig(), "CLIPModel"), "--lengths", "16")
    assert found["lengths"] == []
    assert "CLIPModel does not run on tokens alone here" in found["not_counted"]


def test_what_is_refused(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("inspect").code == 2
    refused(sparsify("inspect", "llama", "--lengths", "many"), 2, "'many' is no length")
    refused(sparsify("inspect", "./nowhere"), 1, "there is no folder ./nowhere")
    (work / "own").mkdir()
    (work / "own" / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    refused(sparsify("inspect", "own"), 4, "pass --trust-remote-code to run it")


def test_a_window_every_other_layer(sparsify: Sparsify, work: Path) -> None:
    config = transformers.Gemma2Config(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    out = sparsify("inspect", save(work / "gemma", config, "Gemma2ForCausalLM"), "--lengths", "16").out
    [windowed] = [line for line in out.splitlines() if "window 4,096" in line]
    assert windowed.startswith("model.layers.0,2,4.self_attn")
    assert "soft cap 50" in windowed
