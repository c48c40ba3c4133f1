"""A GGUF file loads as ordinary weights, which are patched as any others."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.loading import LoadedModel, LoadOptions, load_model
from hf_sparsify.patcher.binding.patching import apply_plan, call_paths, remove_patch
from hf_sparsify.patcher.methods import TopK, TopKFeedForward
from hf_sparsify.patcher.proof import prove
from patched_models import close, everything, far

WIDTH, D_FF, LAYERS, HEADS, GROUPS = 32, 64, 2, 4, 2
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghij"]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def write(path: Path) -> None:
    """A random Llama with 8-bit weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(TOKENS) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes().items():
        if len(shape) == 1:
            writer.add_tensor(name, torch.ones(shape).numpy())
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        weight = torch.randn(shape, generator=generator) * 0.3
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    found["output.weight"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        rows = {"attn_q": WIDTH, "attn_k": WIDTH * GROUPS // HEADS, "attn_v": WIDTH * GROUPS // HEADS}
        rows |= {"attn_output": WIDTH, "ffn_gate": D_FF, "ffn_up": D_FF}
        found |= {f"blk.{layer}.{name}.weight": (count, WIDTH) for name, count in rows.items()}
        found[f"blk.{layer}.ffn_down.weight"] = (WIDTH, D_FF)
        found |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("gguf")
    write(folder / "model.gguf")
    return load_model(str(folder), LoadOptions(gguf_file="model.gguf"))


def test_it_is_proven(loaded: LoadedModel) -> None:
    assert (loaded.base.task, loaded.base.gguf_file) == ("causal-lm", "model.gguf")
    checks = prove(loaded.model, everything(loaded.model, TopK(k=4)), None, "causal-lm")
    assert len(checks) == 6
    assert all(check.passed for check in checks)


def test_attention_and_feed_forward_layers_are_sparse_and_dense_again(loaded: LoadedModel) -> None:
    model, ids = loaded.model, torch.arange(259, 269).repeat(2, 1)
    with torch.no_grad():
        dense = model(ids).logits
        for k, d_ff in ((64, D_FF), (2, 8)):
            layers = {target.name: TopKFeedForward(k=d_ff) for target in feed_forward_modules(model)}
            apply_plan(model, {**everything(model, TopK(k=k)), **layers})
            found = model(ids).logits
            assert call_paths(model).total() == 2 * LAYERS
            remove_patch(model)
            if k == 64:
                close(found, dense)
            else:
                assert far(found, dense)
        assert torch.equal(model(ids).logits, dense)
