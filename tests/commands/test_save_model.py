"""`patch --save-model`: a directory that is a recipe and an ordinary dense model, complete wherever it is moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import hf_sparsify
import pytest
import torch
import transformers
from command_line import Sparsify, contents, refused
from hf_sparsify.commands import own_model
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.binding.loading import LoadOptions, load_model
from hf_sparsify.patcher.recipe import load_recipe
from safetensors import SafetensorError

PATCH = ("patch", "llama", "--k", "4", "--no-verify", "--save-model", "-q")
INPUTS = {"input_ids": torch.arange(5, 45).view(1, -1)}
EVAL = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")


@pytest.fixture
def complete(sparsify: Sparsify, work: Path) -> Path:
    """./sparsified with the tiny Llama in it."""
    assert sparsify(*PATCH).code == 0
    return work / "sparsified"


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [value for value in model(**INPUTS).values() if isinstance(value, torch.Tensor)]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ["llama", "t5", "bert", "bert-qa"])
def test_it_is_an_ordinary_dense_model(name: str, sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", name, "--k", "4", "--save-model", "-q").code == 0
    auto = {"llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM", "bert-qa": "AutoModelForQuestionAnswering"}
    kind = getattr(transformers, auto.get(name, "AutoModel"))
    original, copy = (kind.from_pretrained(work / folder).eval() for folder in (name, "sparsified"))
    decoder = {"decoder_input_ids": torch.ones(1, 3, dtype=torch.long)} if name == "t5" else {}
    with torch.no_grad():
        expected, found = (model(**INPUTS, **decoder).to_tuple() for model in (original, copy))
    assert torch.equal(expected[0], found[0])
    assert set(copy.state_dict()) == set(original.state_dict())
    config = json.loads((work / "sparsified" / "config.json").read_text())
    assert len({path.stat().st_mode for path in (work / "sparsified").iterdir()}) == 1, "others may read all or none"
    assert "sparsify" not in json.dumps(config)
    assert "attn_implementation" not in json.dumps(config)


def test_the_recipe_finds_its_own_weights_wherever_it_is(complete: Path, work: Path) -> None:
    own = hf_sparsify.load(complete)
    assert own.base.id == str((work / "llama").resolve()), "whose copy it is stays known"
    patched = outputs(own.model)
    hf_sparsify.unpatch(own.model)
    assert not same(outputs(own.model), patched)
    assert same(outputs(own.model), outputs(load_model("llama").model))
    (work / "llama").unlink()
    moved = Path(shutil.move(complete, work / "elsewhere"))
    assert same(outputs(hf_sparsify.load(moved).model), patched)


def test_commands_work_on_it_without_the_original(complete: Path, sparsify: Sparsify, work: Path) -> None:
    (work / "llama").unlink()
    weights = (complete / "model.safetensors").read_bytes()
    assert sparsify("validate", "-q").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    assert sparsify("eval", *EVAL).code == 0
    assert sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--force", "-q").code == 0
    assert (complete / "model.safetensors").read_bytes() == weights
    assert load_recipe(complete).base_model.id.endswith("llama")
    assert not list(complete.glob(".*"))


def test_weights_are_replaced_with_force_only(complete: Path, sparsify: Sparsify, work: Path) -> None:
    before = contents(complete)
    others = "holds the weights of an earlier recipe"
    refused(sparsify("patch", "llama", "--k", "5", "--no-verify", "--force"), 2, others)
    refused(sparsify("calibrate", "t5", "-d", "q.jsonl", "-o", "sparsified", "--force"), 2, others)
    refused(sparsify(*PATCH), 2, "holds a model already")
    assert contents(complete) == before
    assert sparsify("patch", "t5", "--k", "4", "--no-verify", "--save-model", "--force", "-q").code == 0
    assert transformers.AutoConfig.from_pretrained(complete).model_type == "t5"
    assert hf_sparsify.load(complete).base.model_type == "t5"


def test_a_model_is_not_saved_onto_itself(complete: Path) -> None:
    with pytest.raises(SparsifyError, match="is where the model is: leave out --save-model"):
        own_model.check_model_place(complete, load_model(str(complete)), save_model=True, force=True)


def test_a_recipe_beside_the_model_it_is_for(sparsify: Sparsify, work: Path) -> None:
    folder = Path(shutil.copytree(work / "llama", work / "mine"))
    assert sparsify("patch", "mine", "--k", "4", "--no-verify", "-o", "mine", "-q").code == 0
    assert sparsify("patch", "mine", "--k", "5", "--no-verify", "-o", "mine", "--force", "-q").code == 0
    assert hf_sparsify.load(folder).base.id == str(folder)


@pytest.mark.parametrize("where", ["_write_model", "hide_model", "place_model"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_model_or_none(
    where: str, error: BaseException, complete: Path, sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise error

    place = "hf_sparsify.commands.own_model" if where == "_write_model" else "hf_sparsify.commands.patch"
    with monkeypatch.context() as patching:
        patching.setattr(f"{place}.{where}", failing)
        done = sparsify("patch", "llama", "--k", "9", "--no-verify", "--save-model", "--force")
    assert done.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "Traceback" not in done.err
    assert not (complete / own_model.STAGED).exists()
    assert hf_sparsify.load(complete).base.model_type == "llama"
    assert (complete / "config.json").exists() == (where != "place_model")


def test_what_a_killed_run_left_is_replaced(sparsify: Sparsify, work: Path) -> None:
    (work / "sparsified" / own_model.STAGED / "1_Pooling").mkdir(parents=True)
    (work / "sparsified" / own_model.STAGED / "model-00001-of-00002.safetensors").write_bytes(b"half")
    assert sparsify(*PATCH).code == 0
    assert not (work / "sparsified" / own_model.STAGED).exists()
    assert not list((work / "sparsified").glob("model-*"))


def test_a_second_process_is_told_to_wait(complete: Path) -> None:
    loaded = load_model("llama")
    second = own_model.staged_model(loaded, complete)
    with own_model.staged_model(loaded, complete), pytest.raises(SparsifyError, match="another process is"), second:
        pass


def test_how_an_encoder_pools_goes_along(sparsify: Sparsify, work: Path) -> None:
    folder = Path(shutil.copytree(work / "bert", work / "embedder"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert sparsify("patch", "embedder", "--no-verify", "--save-model", "-q").code == 0
    assert json.loads((work / "sparsified" / "1_Pooling" / "config.json").read_text()) == {
        "pooling_mode_cls_token": True
    }


def test_a_gguf_model_becomes_an_ordinary_one(work: Path, sparsify: Sparsify) -> None:
    gguf = pytest.importorskip("gguf")
    folder = work / "quantised"
    folder.mkdir()
    _write_gguf(gguf, folder / "tiny.gguf")
    done = sparsify(*(*PATCH[:1], "quantised", *PATCH[2:]), "--gguf-file", "tiny.gguf")
    assert done.code == 0, done.err
    expected = load_model("quantised", LoadOptions(gguf_file="tiny.gguf")).model
    assert same(outputs(transformers.AutoModelForCausalLM.from_pretrained(work / "sparsified")), outputs(expected))
    own = hf_sparsify.load("sparsified")
    assert own.base.gguf_file == "tiny.gguf"
    hf_sparsify.unpatch(own.model)
    assert same(outputs(own.model), outputs(expected))


def _write_gguf(gguf: Any, path: Path) -> None:
    """A random Llama of two layers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(97)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*map(chr, range(33, 127)), "ab", "bc", "<end>"])
    writer.add_token_types([1] * 96 + [3])
    writer.add_token_merges(["a b", "b c"])
    writer.add_eos_token_id(96)
    writer.add_bos_token_id(96)
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, torch.randn(shape, generator=generator).numpy())

    tensor("token_embd.weight", 97, 32)
    tensor("output.weight", 97, 32)
    tensor("output_norm.weight", 32)
    for layer in range(2):
        shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
        shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        for name, shape in shapes.items():
            tensor(f"blk.{layer}.{name}.weight", *shape)
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{name}.weight", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_full_disk_as_the_library_of_the_weights_says_it(
    complete: Path, sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(complete)

    def failing(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", failing)
    done = sparsify("patch", "llama", "--k", "9", "--no-verify", "--save-model", "--force")
    refused(
        done, 1, "cannot write the model to sparsified: Error while serializing: I/O error: No space left on device"
    )
    assert contents(complete) == before
