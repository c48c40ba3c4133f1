"""Every bad input: its exit code, one sentence on stderr, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Sparsify, contents, files, refused


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("no-org/no-model", 1, "unknown model 'no-org/no-model'"),
        ("./nowhere", 1, "there is no folder ./nowhere"),
        ("q.jsonl", 1, "is a file"),
        (".", 1, "is a folder but not a model"),
        ("yoso", 4, "YosoModel cannot be patched: its YosoSelfAttention"),
        (
            "gpt-neo --attention clustered",
            4,
            "is for bidirectional self-attention only, and transformer.h.0.attn.attention is causal",
        ),
        ("llama --k 0", 2, "k must be a whole number of at least 1, not 0"),
        ("llama --k -3", 2, "not -3"),
        ("llama --keep 0", 2, "keep must be a fraction in (0, 1], not 0.0"),
        ("llama --keep 1.5", 2, "not 1.5"),
        ("llama --keep nan", 2, "not nan"),
        ("llama --k 4 --keep 0.5", 2, "--k and --keep exclude each other"),
        ("llama --k 4 --protect-first 5", 2, "5 protected keys do not fit in k = 4"),
        ("llama --protect-first -1", 2, "not -1"),
        ("t5 --protect-recent 2", 4, "recent keys can be protected in causal self-attention only"),
        ("t5 --protect-recent 2 --no-verify", 4, "recent keys can be protected in causal self-attention only"),
        ("t5 --protect-recent 2 --dry-run", 4, "recent keys can be protected in causal self-attention only"),
        ("llama --layers 2", 2, "layers: layer 2 is out of range, the model has layers 0-1"),
        ("llama --layers x", 2, "'x' is neither a layer nor a range"),
        ("llama --skip-layers 0-1", 2, "leaves no module"),
        ("llama --attention magic", 2, "unknown method 'magic'"),
        ("llama --kind both", 2, "kind must be self or cross"),
        ("llama --stack middle", 2, "stack must be encoder or decoder"),
        ("llama --dtype int8", 2, "dtype must be one of"),
        ("llama --device gpu", 2, "device must be auto"),
        ("llama -o q.jsonl", 1, "cannot write the recipe to q.jsonl: it is a file"),
        ("llama -o q.jsonl/below", 1, "cannot write the recipe to q.jsonl/below"),
        (f"llama -o {'a' * 300}", 1, "File name too long"),
        ("llama --ffn top-k --ffn-k 0", 2, "--ffn top-k: k must be a whole number of at least 1, not 0"),
    ],
)
def test_patch_refuses(arguments: str, code: int, sentence: str, sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("patch", *arguments.split()), code, sentence)
    assert files(work) == []


@pytest.mark.parametrize("command", ["patch llama", "calibrate llama -d q.jsonl", "eval llama -d q.jsonl"])
def test_a_link_to_itself_is_no_place(command: str, sparsify: Sparsify, work: Path) -> None:
    (work / "loop").symlink_to("loop")
    refused(sparsify(*command.split(), "-o", "loop"), 1, "to loop: it is a link that leads nowhere")
    assert files(work) == []


BAD_DATA = [
    ("-d nowhere.jsonl", 1, "no such file: nowhere.jsonl"),
    ("-d empty.jsonl", 1, "empty.jsonl is empty"),
    ("-d bad.jsonl", 1, "bad.jsonl: line 2 is not JSON"),
    ("-d q.jsonl --split train", 2, "a file has no splits"),
    ("-d demo --split middle", 2, "--split middle"),
    ("-d squad", 1, "squad"),
    ("-d q.jsonl --model q.jsonl", 1, "is a file"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        *BAD_DATA,
        ("-d q.jsonl --limit 0", 2, "--limit must be at least 1, not 0"),
        ("-d q.jsonl --batch-size 0", 2, "--batch-size must be at least 1, not 0"),
        ("-d q.jsonl --batch_size -2", 2, "--batch-size must be at least 1, not -2"),
        ("-d q.jsonl --max-new-tokens 0", 2, "--max-new-tokens must be at least 1, not 0"),
        ("-d q.jsonl --max-new-tokens 512", 2, "the model has 512 positions"),
        ("-d q.jsonl --as-top-k", 2, "was not calibrated"),
        ("-d q.jsonl -o llama", 2, "llama exists already"),
        ("-d q.jsonl -o q.jsonl/below", 1, "cannot write the results to q.jsonl/below"),
        ("llama -d q.jsonl --model llama", 2, "--model goes with a recipe"),
        ("bert -d one-passage.jsonl", 1, "one-passage.jsonl has a single passage for its 2 questions"),
        ("slow-qa -d q.jsonl", 1, "give the model a fast tokenizer"),
    ],
)
def test_eval_refuses(arguments: str, code: int, sentence: str, sparsify: Sparsify, recipe: Path) -> None:
    before = files(recipe.parent)
    refused(sparsify("eval", *arguments.split()), code, sentence)
    assert files(recipe.parent) == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        *BAD_DATA,
        ("-d q.jsonl --samples 0", 2, "--samples must be at least 1, not 0"),
        ("-d q.jsonl --k 0", 2, "k must be a whole number of at least 1, not 0"),
        ("-d q.jsonl --keep 2", 2, "keep must be a fraction"),
        ("-d q.jsonl --k 2 --keep 0.5", 2, "--k and --keep exclude each other"),
        ("-d q.jsonl --distractors -1", 2, "--distractors must be at least 0, not -1"),
        ("-d q.jsonl --placement softmax", 2, "--placement must be one of post-softmax, max-relative, pre-softmax"),
        ("-d q.jsonl --alpha 0.1", 2, "--alpha 0.1 goes with --estimator mean"),
        ("-d q.jsonl --compensation vmc", 2, "vmc alone changes nothing"),
        ("-d q.jsonl --denominator offline --compensation sdc+vmc", 2, "saves nothing with post-softmax placement"),
        ("-d q.jsonl --k 400", 1, "no row of the 6 samples sees more keys than its k"),
        ("-d q.jsonl -o q.jsonl/below", 1, "cannot write the recipe to q.jsonl/below"),
        ("-d q.jsonl --model other", 4, "has another shape"),
        ("slow-qa -d q.jsonl -o new", 1, "give the model a fast tokenizer"),
    ],
)
def test_calibrate_refuses(arguments: str, code: int, sentence: str, sparsify: Sparsify, recipe: Path) -> None:
    before = contents(recipe.parent)
    refused(sparsify("calibrate", *arguments.split()), code, sentence)
    assert contents(recipe.parent) == before


@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_no_recipe_here(command: str, sparsify: Sparsify, work: Path) -> None:
    refused(sparsify(command), 2, "there is no recipe in ./sparsified: run `sparsify patch MODEL` first")
    assert files(work) == []


@pytest.mark.parametrize("file", ["sparsify.json", "thresholds.safetensors"])
@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_a_malformed_recipe(file: str, command: str, sparsify: Sparsify, recipe: Path) -> None:
    sparsify("calibrate", "-d", "q.jsonl")
    (recipe / file).write_text("{}")
    refused(sparsify(command, "-d", "q.jsonl"), 1, file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("bert", "Where ?"), "does not generate text"),
        (("bert-qa", "Where ?"), "does not generate text"),
        (("bart-qa", "Where ?"), "does not generate text"),
        (("sparsified", " "), "the prompt is empty"),
        (("sparsified", "Where ?", "--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("sparsified", "Where ?", "--max-new-tokens", "511"), "do not fit the model's 512 positions"),
        (("gpt2", "is " * 100, "--max-new-tokens", "2"), "do not fit the model's 96 positions"),
        (("bart", "Where ?", "--max-new-tokens", "200"), "the model has 96 positions"),
    ],
)
def test_generate_refuses(arguments: tuple[str, ...], sentence: str, sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("generate", *arguments)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err.splitlines()[-1]


def test_a_patch_that_is_not_sound_is_not_written(
    sparsify: Sparsify, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_sparsify.patcher.binding.attention import ATTENTION_NAME
    from transformers import AttentionMaskInterface

    without = {key: value for key, value in AttentionMaskInterface._global_mapping.items() if key != ATTENTION_NAME}
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", without)
    monkeypatch.setattr(AttentionMaskInterface, "register", lambda *arguments: None)
    done = sparsify("patch", "llama")
    refused(done, 4, "the patch is not sound on this model")
    assert "model.layers.0.self_attn" in done.err
    assert files(work) == []


def test_an_empty_dataset_name_is_not_the_default_one(sparsify: Sparsify, recipe: Path) -> None:
    refused(sparsify("eval", "--dataset", ""), 2, "--dataset is empty")
    refused(sparsify("calibrate", "--dataset", ""), 2, "--dataset is empty")


@pytest.mark.parametrize("command", ["patch own", "eval own -d q.jsonl", "bench own", "validate sparsified"])
def test_code_that_comes_with_a_model_is_not_run(command: str, sparsify: Sparsify, recipe: Path) -> None:
    folder = Path(shutil.copytree(recipe.parent / "llama", recipe.parent / "own"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(recipe.parent / 'ran')!r}, 'w')\n")
    if command.startswith("validate"):  # the recipe's own copy
        for file in folder.iterdir():
            shutil.copy(file, recipe)
    refused(sparsify(*command.split()), 4, "read that code, then pass --trust-remote-code to run it")
    assert not (recipe.parent / "ran").exists()
