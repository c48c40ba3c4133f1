"""Models without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_sparsify.errors import NotPatchableError, SparsifyError, UsageError
from hf_sparsify.inspection.flops import count
from hf_sparsify.inspection.skeleton import load_skeleton
from hf_sparsify.patcher.binding.loading import LoadOptions

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


def save(folder: Path, config: Any, architecture: str) -> str:
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return str(folder)


def test_a_configuration_is_enough_and_nothing_takes_memory(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        dtype="bfloat16",
    )
    skeleton = load_skeleton(save(tmp_path, config, "LlamaForCausalLM"), LoadOptions())
    assert skeleton.model.num_parameters() == 70_553_706_496
    assert (skeleton.dtype, skeleton.base.task, skeleton.loads) == (torch.bfloat16, "causal-lm", True)
    assert {tensor.device.type for tensor in skeleton.model.parameters()} == {"meta"}
    work = count(skeleton.model, 131072)["decode"]
    assert work.cache_bytes == 80 * 2 * 8 * 128 * 131072 * 2


def test_the_dtype_may_be_chosen(tmp_path: Path) -> None:
    name = save(tmp_path, transformers.BertConfig(**SIZES), "BertModel")
    assert load_skeleton(name, LoadOptions()).dtype == torch.float32
    assert load_skeleton(name, LoadOptions(dtype="bfloat16")).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="dtype must be one of"):
        load_skeleton(name, LoadOptions(dtype="int8"))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_lengths_beyond_the_positions_can_be_counted(tmp_path: Path, family: str) -> None:
    config, architecture = {
        "bert": (transformers.BertConfig(**SIZES, max_position_embeddings=16), "BertModel"),
        "roberta": (transformers.RobertaConfig(**SIZES, max_position_embeddings=18), "RobertaForQuestionAnswering"),
        "gpt2": (transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16), "GPT2LMHeadModel"),
    }[family]
    skeleton = load_skeleton(save(tmp_path, config, architecture), LoadOptions())
    before = skeleton.model.num_parameters()
    assert next(iter(count(skeleton.with_positions(65), 64).values())).total > 0
    assert skeleton.model.num_parameters() == before


def test_rotations_that_depend_on_the_length(tmp_path: Path) -> None:
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    config = transformers.Phi3Config(
        **SIZES,
        pad_token_id=0,
        rope_parameters=factors,
        original_max_position_embeddings=16,
        max_position_embeddings=64,
    )
    skeleton = load_skeleton(save(tmp_path, config, "Phi3ForCausalLM"), LoadOptions())
    assert set(count(skeleton.model, 32)) == {"prefill", "decode"}


def test_a_class_that_the_commands_do_not_load(tmp_path: Path) -> None:
    name = "TimeSeriesTransformerForPrediction"
    config = transformers.TimeSeriesTransformerConfig(prediction_length=4)
    skeleton = load_skeleton(save(tmp_path, config, name), LoadOptions())
    assert (type(skeleton.model).__name__, skeleton.loads) == (name, False)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(proof)!r}, 'w')\n")
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    with pytest.raises(NotPatchableError, match="then pass --trust-remote-code to run it"):
        load_skeleton(str(tmp_path), LoadOptions())
    assert not proof.exists()


def test_a_configuration_that_makes_no_model(tmp_path: Path) -> None:
    config = transformers.BertConfig(**{**SIZES, "num_attention_heads": 5})
    with pytest.raises(SparsifyError, match=r"makes no .*: The hidden size"):
        load_skeleton(save(tmp_path, config, "BertModel"), LoadOptions())


def test_a_gguf_file_is_not_fetched() -> None:
    with pytest.raises(UsageError, match=r"fetch it with `hf download org/name q\.gguf`"):
        load_skeleton("org/name", LoadOptions(gguf_file="q.gguf"))
