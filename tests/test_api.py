"""The Python API in memory, and that it says the same as the command line."""

from __future__ import annotations

import json
from pathlib import Path

import hf_sparsify
import pytest
import tiny_language_models
import tiny_models
import torch
from command_line import runner
from hf_sparsify import (
    DataError,
    LoadOptions,
    NotPatchableError,
    RecipeMismatchError,
    TopK,
    TopKFeedForward,
    TopTheta,
    UsageError,
)
from torch import Tensor

FAMILIES = tiny_models.FAMILIES


def samples(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(5, tiny_models.VOCABULARY, (1, 30), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_unpatching_restores_every_bit(name: str) -> None:
    model, call = tiny_models.build(name), tiny_models.inputs(name)
    before, implementation = tiny_models.logits(model, call), model.config._attn_implementation
    record = hf_sparsify.patch(model, TopK(k=2))
    assert isinstance(record, hf_sparsify.Patch)
    assert not torch.equal(tiny_models.logits(model, call), before)
    hf_sparsify.unpatch(model)
    assert torch.equal(tiny_models.logits(model, call), before)
    assert model.config._attn_implementation == implementation


def test_the_default_is_top_k_with_64_everywhere() -> None:
    record = hf_sparsify.patch(tiny_models.build("llama"))
    assert [module.method for module in record.module_patches] == [TopK(k=64, compensation="sdc+vmc")] * 2


def test_selections() -> None:
    for options, names in (
        (
            {"layers": "1"},
            ["encoder.layers.1.self_attn", "decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn"],
        ),
        ({"layers": [0], "kind": "cross"}, ["decoder.layers.0.encoder_attn"]),
        ({"skip_layers": "0", "stack": "encoder"}, ["encoder.layers.1.self_attn"]),
    ):
        model = tiny_models.build("bart")
        record = hf_sparsify.patch(model, TopK(k=4), **options)  # type: ignore[arg-type]
        assert sorted(module.name for module in record.module_patches) == sorted(f"model.{name}" for name in names)


def test_a_plan_names_its_modules() -> None:
    model = tiny_models.build("llama")
    plan = {"model.layers.1.self_attn": TopTheta(k=3)}
    with pytest.raises(UsageError, match="a plan names its modules"):
        hf_sparsify.patch(model, plan, layers="1")
    with pytest.raises(RecipeMismatchError, match="nowhere"):
        hf_sparsify.patch(model, {"nowhere": TopK(k=3)})
    record = hf_sparsify.patch(model, plan)
    assert {module.name: module.method for module in record.module_patches} == plan


def test_what_is_refused() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(UsageError, match="not patched"):
        hf_sparsify.unpatch(model)
    with pytest.raises(UsageError, match="not patched"):
        hf_sparsify.calibrate(model, samples())
    hf_sparsify.patch(model)
    with pytest.raises(UsageError, match="already patched"):
        hf_sparsify.patch(model)
    with pytest.raises(NotPatchableError, match="Linear cannot be patched"):
        hf_sparsify.patch(torch.nn.Linear(2, 2))


def test_calibration_in_memory() -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama", length=30)
    hf_sparsify.patch(model, TopK(k=4))
    exact = tiny_models.logits(model, call)
    record = hf_sparsify.calibrate(model, samples())
    assert {module.method for module in record.module_patches} == {TopTheta(k=4)}
    assert all(module.thresholds is not None and module.thresholds.heads == 4 for module in record.module_patches)
    assert not torch.equal(tiny_models.logits(model, call), exact)
    hf_sparsify.unpatch(model)
    hf_sparsify.patch(model, TopK(k=4))
    assert torch.equal(tiny_models.logits(model, call), exact)


def test_a_failed_calibration_puts_the_old_patch_back() -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama", length=30)
    hf_sparsify.patch(model, TopK(k=4))
    hf_sparsify.calibrate(model, samples())
    before = tiny_models.logits(model, call)
    with pytest.raises(DataError, match="no sample"):
        hf_sparsify.calibrate(model, [])
    with pytest.raises(IndexError):
        hf_sparsify.calibrate(model, [{"input_ids": torch.tensor([[9999]])}])
    assert torch.equal(tiny_models.logits(model, call), before)


@pytest.fixture
def recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """./sparsified with thresholds, made by the command line, and q.jsonl; the parameter is the family."""
    monkeypatch.chdir(tmp_path)
    tiny_language_models.save(request.param, tmp_path / "model")
    tiny_language_models.save_questions(tmp_path / "q.jsonl", 6)
    sparsify = runner(capsys, monkeypatch)
    assert sparsify("patch", "model", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    return tmp_path / "sparsified"


@pytest.mark.parametrize("recipe", ["llama", "t5"], indirect=True)
def test_a_loaded_recipe_generates_what_the_command_shows(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "Ann is in the barn . Where is Ann ?"
    shown = runner(capsys, monkeypatch)("generate", "sparsified", prompt, "--max-new-tokens", "6", "--json")
    answers = json.loads(shown.out)
    loaded = hf_sparsify.load(recipe)
    inputs = loaded.tokenizer(prompt, return_tensors="pt")
    call = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    length = 0 if loaded.model.config.is_encoder_decoder else call["input_ids"].shape[1]

    def answer() -> str:
        tokens = loaded.model.generate(**call, max_new_tokens=6, do_sample=False)[0, length:]
        return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    assert answer() == answers["patched"]
    hf_sparsify.unpatch(loaded.model)
    assert answer() == answers["dense"]


@pytest.mark.parametrize("recipe", ["llama", "t5"], indirect=True)
def test_evaluate_gives_what_the_command_saves(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["eval", "-d", "q.jsonl", "--max-new-tokens", "4", "--limit", "5", "--seed", "2", "--json"]
    shown = json.loads(runner(capsys, monkeypatch)(*options).out)
    found = hf_sparsify.evaluate(recipe.name, "q.jsonl", max_new_tokens=4, limit=5, seed=2)
    assert set(shown) - set(found) == {"run_id", "run", "command", "sha256", "predictions_sha256"}
    for name in set(found) - {"seconds"}:
        assert json.loads(json.dumps(found[name])) == shown[name], name


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_loading(recipe: Path, tmp_path: Path) -> None:
    assert hf_sparsify.load_recipe(recipe).calibration is not None
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(hf_sparsify.SparsifyError, match="--model"):
        hf_sparsify.load(recipe)
    loaded = hf_sparsify.load(recipe, model=str(tmp_path / "elsewhere"), options=LoadOptions(dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="holds no recipe"):
        hf_sparsify.load(tmp_path)


@pytest.mark.parametrize("recipe", ["llama"], indirect=True)
def test_a_saved_patched_model_loads_as_the_dense_one(recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = hf_sparsify.load(recipe)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    loaded.model.save_pretrained(tmp_path / "saved")
    hf_sparsify.unpatch(loaded.model)
    with torch.no_grad():
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(saved(tokens).logits, loaded.model(tokens).logits)


# As a context manager


def test_a_block_is_sparse_and_dense_afterwards() -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama")
    dense = tiny_models.logits(model, call)
    seen = []
    for k in (2, 3):
        with hf_sparsify.patch(model, TopK(k=k), TopKFeedForward(k=4)) as record:
            assert isinstance(record, hf_sparsify.Patch)
            seen.append(tiny_models.logits(model, call))
            with pytest.raises(UsageError, match="already patched"):
                hf_sparsify.patch(model)
        assert torch.equal(tiny_models.logits(model, call), dense)
    assert not torch.equal(*seen)


def test_blocks_of_two_models_may_be_nested() -> None:
    models = [tiny_models.build(name) for name in ("llama", "t5")]
    calls = [tiny_models.inputs(name) for name in ("llama", "t5")]

    def outputs() -> list[Tensor]:
        return [tiny_models.logits(model, call) for model, call in zip(models, calls, strict=True)]

    dense = outputs()
    with hf_sparsify.patch(models[0], TopK(k=2)):
        outer = outputs()
        with hf_sparsify.patch(models[1], TopK(k=1)):
            inner = outputs()
        assert all(torch.equal(one, other) for one, other in zip(outputs(), outer, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(outputs(), dense, strict=True))
    assert torch.equal(outer[1], dense[1])
    assert torch.equal(inner[0], outer[0])
    assert not torch.equal(inner[1], dense[1])


def test_a_block_that_fails_leaves_a_dense_model() -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama")
    dense = tiny_models.logits(model, call)
    with pytest.raises(KeyError, match="mine"), hf_sparsify.patch(model, TopK(k=2), TopKFeedForward(k=4)):
        raise KeyError("mine")
    assert torch.equal(tiny_models.logits(model, call), dense)
    hf_sparsify.patch(model)  # it is not left half patched


@pytest.mark.parametrize("inside", ["unpatch", "patch anew", "calibrate", "leave another block"])
def test_a_block_ends_dense_whatever_happened_inside(inside: str) -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama", length=30)
    dense = tiny_models.logits(model, call)
    with hf_sparsify.patch(model, TopK(k=2)):
        if inside == "calibrate":
            hf_sparsify.calibrate(model, samples())
        else:
            hf_sparsify.unpatch(model)
            assert torch.equal(tiny_models.logits(model, call), dense)
        if inside == "patch anew":
            hf_sparsify.patch(model, TopK(k=3))
        if inside == "leave another block":
            with hf_sparsify.patch(model, TopK(k=3)):
                pass
    assert torch.equal(tiny_models.logits(model, call), dense)
    with pytest.raises(UsageError, match="not patched"):
        hf_sparsify.unpatch(model)


def test_feed_forward_layers_follow_the_selection() -> None:
    model = tiny_models.build("bart")
    record = hf_sparsify.patch(model, TopK(k=4), TopKFeedForward(keep=0.5), layers="1", stack="decoder")
    assert {module.name: module.method.name for module in record.module_patches} == {
        "model.decoder.layers.1.self_attn": "top-k",
        "model.decoder.layers.1.encoder_attn": "top-k",
        "model.decoder.layers.1.fc2": "top-k-feed-forward",
    }
    hf_sparsify.unpatch(model)
    with pytest.raises(UsageError, match="give no feed_forward"):
        hf_sparsify.patch(model, {"model.decoder.layers.1.fc2": TopKFeedForward(k=4)}, TopKFeedForward(k=4))
    with pytest.raises(UsageError, match="nothing is left to patch"):
        hf_sparsify.patch(model, None)
