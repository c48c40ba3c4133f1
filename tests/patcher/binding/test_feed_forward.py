"""Feed-forward layers of every family: found, sparse as a hook would make them, and dense again to the bit."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import hf_sparsify
import pytest
import torch
from feed_forward_models import MIXTURES, NAMES, call_of, every_layer, make, output
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.patching import apply_plan, current_patch, remove_patch
from hf_sparsify.patcher.kernels import feed_forward
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import TopK, TopKFeedForward, top_k_feed_forward
from patched_models import close, far, state
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

ALL, SOME = TopKFeedForward(keep=1.0), TopKFeedForward(k=4)

# Each family's layers: their names with {} for the number, and (stack, layers) in module order.
LAYERS: dict[str, list[tuple[str, str, int]]] = {
    "llama": [("model.layers.{}.mlp.down_proj", "decoder", 2)],
    "mistral": [("model.layers.{}.mlp.down_proj", "decoder", 2)],
    "gemma2": [("model.layers.{}.mlp.down_proj", "decoder", 2)],
    "gpt2": [("transformer.h.{}.mlp.c_proj", "decoder", 2)],
    "bert": [("bert.encoder.layer.{}.output.dense", "encoder", 2)],
    "t5": [
        ("encoder.block.{}.layer.1.DenseReluDense.wo", "encoder", 2),
        ("decoder.block.{}.layer.2.DenseReluDense.wo", "decoder", 2),
    ],
    "bart": [("model.encoder.layers.{}.fc2", "encoder", 2), ("model.decoder.layers.{}.fc2", "decoder", 2)],
    "opt": [("model.decoder.layers.{}.fc2", "decoder", 2)],
    "neox": [("gpt_neox.layers.{}.mlp.dense_4h_to_h", "decoder", 2)],
    "distilbert": [("transformer.layer.{}.ffn.lin2", "encoder", 2)],
    "albert": [("encoder.albert_layer_groups.{}.albert_layers.0.ffn_output", "encoder", 1)],  # shared by all layers
    "moonshine": [("model.encoder.layers.{}.mlp.fc2", "encoder", 1), ("model.decoder.layers.{}.mlp.fc2", "decoder", 2)],
    "modernbert": [("layers.{}.mlp.Wo", "encoder", 2)],
    "vit": [("layers.{}.mlp.fc2", "encoder", 2)],
    "clip": [
        ("text_model.encoder.layers.{}.mlp.fc2", "decoder", 2),
        ("vision_model.encoder.layers.{}.mlp.fc2", "encoder", 2),
    ],
    # Not crossattention.output.dense, nor attention.output.dense.
    "bert-cross": [("bert.encoder.layer.{}.output.dense", "decoder", 2)],
}
LAYERS["t5-gated"], LAYERS["whisper"] = LAYERS["t5"], LAYERS["bart"]


def patched(name: str, method: TopKFeedForward = SOME) -> Any:
    model = make(name)
    apply_plan(model, every_layer(model, method))
    return model


def by_hooks(model: nn.Module, call: dict[str, Tensor], k: int) -> Tensor:
    """What the dense model gives if hooks zero all but the k largest inputs of its down-projections."""

    def mask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        order = args[0].abs().sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return (torch.zeros_like(args[0]).scatter(-1, order, args[0].gather(-1, order)),)

    hooks = [target.module.register_forward_pre_hook(mask) for target in feed_forward_modules(model)]
    try:
        return output(model, call)
    finally:
        for hook in hooks:
            hook.remove()


# Every family


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_of_every_family_are_found(name: str) -> None:
    found = feed_forward_modules(make(name))
    expected = [(pattern.format(i), stack, i) for pattern, stack, count in LAYERS[name] for i in range(count)]
    assert [(target.name, target.stack, target.layer) for target in found] == expected
    assert {target.d_ff for target in found} == {128 if name == "gpt2" else 40}


@pytest.mark.parametrize("name", NAMES)
def test_sparse_as_hooks_would_make_it_and_dense_again_to_the_bit(name: str) -> None:
    model, call = make(name), call_of(name)
    dense, before, keys = output(model, call), state(model), list(model.state_dict())
    expected = by_hooks(model, call, 4)
    patch = apply_plan(model, every_layer(model, ALL))
    assert torch.equal(output(model, call), dense)
    assert all(layer.calls > 0 for layer in patch.module_patches)
    remove_patch(model)
    apply_plan(model, every_layer(model, SOME))
    assert list(model.state_dict()) == keys
    sparse = output(model, call)
    close(sparse, expected)
    assert far(sparse, dense)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(output(model, call), dense)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "neox", "gemma2"])
def test_one_token_reads_the_kept_rows_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = make(name), {"input_ids": call_of(name)["input_ids"][:1, :1]}
    dense, expected = output(model, call), by_hooks(model, call, 4)
    gathered = count_gathers(monkeypatch)
    apply_plan(model, every_layer(model, SOME))
    close(output(model, call), expected)
    assert len(gathered) == 2
    remove_patch(model)
    assert torch.equal(output(model, call), dense)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generation_token_by_token_keeps_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = patched(name), {key: value[:1] for key, value in call_of(name).items()}
    gathered = count_gathers(monkeypatch)
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    tokens = model.generate(**call, **options)
    assert gathered
    monkeypatch.setattr(top_k_feed_forward, "GATHER_TOKENS", 0)
    assert torch.equal(model.generate(**call, **options), tokens)


def count_gathers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with every product of gathered rows."""
    gathered: list[Any] = []
    original = feed_forward.project_kept

    def counting(*call: Any) -> Tensor | None:
        out = original(*call)
        gathered.extend([] if out is None else [out])
        return out

    monkeypatch.setattr(feed_forward, "project_kept", counting)
    return gathered


@pytest.mark.parametrize("name", ["llama", "bart", "t5-gated"])
def test_bfloat16_models(name: str) -> None:
    model, call = make(name), call_of(name)
    exact = by_hooks(model, call, 20)
    model = model.to(torch.bfloat16)
    reference = by_hooks(model, call, 20).float()
    apply_plan(model, every_layer(model, TopKFeedForward(k=20)))
    out = output(model, call)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference, rtol=2e-2, atol=2e-2)
    assert float((out.float() - exact).abs().mean()) < 0.3 * float(exact.std())


def test_half_precision_t5_whose_down_projection_stays_in_single(tmp_path: Path) -> None:
    make("t5").save_pretrained(tmp_path)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16).eval()
    down = feed_forward_modules(model)[0].module
    assert (down.weight.dtype, model.dtype) == (torch.float32, torch.float16)
    for length in (12, 1):
        call = {"input_ids": call_of("t5")["input_ids"][:1, :length], "decoder_input_ids": torch.tensor([[3]])}
        dense, expected = output(model, call), by_hooks(model, call, 4)
        apply_plan(model, every_layer(model, SOME))
        torch.testing.assert_close(output(model, call), expected, rtol=1e-2, atol=1e-2)
        remove_patch(model)
        assert torch.equal(output(model, call), dense)


# Refused


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_experts_is_refused_by_name_and_its_attention_is_not(name: str) -> None:
    model, call = make(name), call_of(name)
    dense = output(model, call)  # first: Switch's router makes an attribute when it is called
    before = state(model)
    with pytest.raises(NotPatchableError, match=r"experts is a mixture of experts .*patch its attention alone"):
        hf_sparsify.patch(model, None, SOME)
    with pytest.raises(NotPatchableError, match="mixture of experts"):
        hf_sparsify.patch(model, TopK(k=3), SOME)
    assert state(model) == before
    with hf_sparsify.patch(model, TopK(k=2)):
        assert far(output(model, call), dense)
    assert torch.equal(output(model, call), dense)


def test_wrong_kinds_of_modules_are_refused() -> None:
    model = make("llama")
    before = state(model)
    with pytest.raises(NotPatchableError, match=r"self_attn is attention, which top-k-feed-forward is not for"):
        hf_sparsify.patch(model, {"model.layers.0.self_attn": SOME})
    with pytest.raises(NotPatchableError, match=r"down_proj is a feed-forward layer, which top-k is not for"):
        hf_sparsify.patch(model, {"model.layers.0.mlp.down_proj": TopK(k=3)})
    with pytest.raises(NotPatchableError, match="no feed-forward layer of Linear is recognised"):
        hf_sparsify.patch(nn.Linear(3, 3), None, SOME)
    assert state(model) == before


# Copies, files, counting


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_copies_and_pickles_are_patched_on_their_own(name: str) -> None:
    model, call = patched(name), call_of(name)
    sparse = output(model, call)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(output(twin, call), sparse)
        mine = {id(module) for module in twin.modules()}
        assert all(id(layer.module) in mine for layer in current_patch(twin).feed_forward)
        calls = [layer.calls for layer in current_patch(model).module_patches]
        with torch.no_grad():
            current_patch(twin).feed_forward[0].module.weight.zero_()
        assert not torch.equal(output(twin, call), sparse)
        assert [layer.calls for layer in current_patch(model).module_patches] == calls
        remove_patch(twin)
        assert not any("forward" in vars(module) for module in twin.modules())
    assert torch.equal(output(model, call), sparse)


def test_a_saved_patched_model_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model, call = make("llama"), call_of("llama")
    dense = output(model, call)
    hf_sparsify.patch(model, TopK(k=2), SOME)
    model.save_pretrained(tmp_path)
    assert "sparsify" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert torch.equal(output(type(model).from_pretrained(tmp_path).eval(), call), dense)


def test_a_plan_of_feed_forward_layers_alone_leaves_attention_as_it_is() -> None:
    model = make("llama")
    model.set_attn_implementation("eager")
    implementation = model.config._attn_implementation
    with hf_sparsify.patch(model, None, SOME) as patch:
        assert patch.configs == []
        assert model.config._attn_implementation == implementation
        assert model(**call_of("llama"), output_attentions=True).attentions[0] is not None


def test_pausing_and_counting() -> None:
    model, call = make("llama"), call_of("llama")
    dense = output(model, call)
    patch = apply_plan(model, every_layer(model, SOME))
    sparse = output(model, call)
    with patch.metered(Meter()) as meter:
        output(model, call)
        output(model, {"input_ids": call["input_ids"][:1, :1]})
    assert {name: (m.activations, m.activations_kept) for name, m in meter.modules.items()} == {
        f"model.layers.{layer}.mlp.down_proj": ((24 + 1) * 40, (24 + 1) * 4) for layer in (0, 1)
    }
    assert meter.total().summary()["activations_kept_share"] == 0.1
    calls = [layer.calls for layer in patch.module_patches]
    with patch.paused():
        assert torch.equal(output(model, call), dense)
        with patch.paused():
            pass
        assert torch.equal(output(model, call), dense)
    assert [layer.calls for layer in patch.module_patches] == calls
    assert torch.equal(output(model, call), sparse)


def test_unpatching_inside_a_pause_is_for_good() -> None:
    model = make("llama")
    before = state(model)
    with hf_sparsify.patch(model, TopK(k=2), SOME).paused():
        hf_sparsify.unpatch(model)
    assert state(model) == before
