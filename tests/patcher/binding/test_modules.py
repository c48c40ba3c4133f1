"""Which modules are attention, what kind each is, and which models have none that can be patched."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from families.every import EVERY
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.modules import attention_modules, require_attention_modules, unreachable_attention
from tiny_models import FAMILIES, build
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}

EXPECTED = {
    "llama": ["model.layers.0.self_attn self decoder 0", "model.layers.1.self_attn self decoder 1"],
    "mistral": ["model.layers.0.self_attn self decoder 0", "model.layers.1.self_attn self decoder 1"],
    "gemma2": ["model.layers.0.self_attn self decoder 0", "model.layers.1.self_attn self decoder 1"],
    "gpt_oss": ["model.layers.0.self_attn self decoder 0", "model.layers.1.self_attn self decoder 1"],
    "gpt2": ["transformer.h.0.attn self decoder 0", "transformer.h.1.attn self decoder 1"],
    "bert": [
        "bert.encoder.layer.0.attention.self self encoder 0",
        "bert.encoder.layer.1.attention.self self encoder 1",
    ],
    "t5": [
        "encoder.block.0.layer.0.SelfAttention self encoder 0",
        "encoder.block.1.layer.0.SelfAttention self encoder 1",
        "decoder.block.0.layer.0.SelfAttention self decoder 0",
        "decoder.block.0.layer.1.EncDecAttention cross decoder 0",
        "decoder.block.1.layer.0.SelfAttention self decoder 1",
        "decoder.block.1.layer.1.EncDecAttention cross decoder 1",
    ],
    "bart": [
        "model.encoder.layers.0.self_attn self encoder 0",
        "model.encoder.layers.1.self_attn self encoder 1",
        "model.decoder.layers.0.self_attn self decoder 0",
        "model.decoder.layers.0.encoder_attn cross decoder 0",
        "model.decoder.layers.1.self_attn self decoder 1",
        "model.decoder.layers.1.encoder_attn cross decoder 1",
    ],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_of_every_family(name: str) -> None:
    model = build(name)
    found = attention_modules(model)
    assert [f"{m.name} {m.kind} {m.stack} {m.layer}" for m in found] == EXPECTED[name]
    assert all(m.heads == 4 for m in found)
    assert all(model.get_submodule(m.name) is m.module for m in found)
    assert [m.causal for m in found] == [m.kind == "self" and m.stack == "decoder" for m in found]
    assert all(m.route == "interface" for m in found)
    assert unreachable_attention(model) == []


def test_gpt2_and_bert_as_decoders_with_cross_attention() -> None:
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True)
    )
    assert [(m.name.rsplit(".", 1)[1], m.kind, m.stack) for m in attention_modules(gpt2)] == [
        ("attn", "self", "decoder"),
        ("crossattention", "cross", "decoder"),
    ]
    bert = transformers.BertLMHeadModel(
        transformers.BertConfig(**SMALL, num_hidden_layers=1, is_decoder=True, add_cross_attention=True)
    )
    assert [(m.kind, m.stack, m.causal) for m in attention_modules(bert)] == [
        ("self", "decoder", True),
        ("cross", "decoder", False),
    ]


def natures(model: nn.Module) -> list[str]:
    return [module.nature for module in attention_modules(model)]


@pytest.mark.parametrize("name", ["llama_both_ways", "gemma3_both_ways", "splinter", "markuplm", "layoutlm"])
def test_what_never_calls_itself_causal_is_bidirectional(name: str) -> None:
    found = attention_modules(EVERY[name].build())
    assert [module.stack for module in found] == ["encoder", "encoder"]
    assert not any(module.causal for module in found)


def test_a_window_is_part_of_what_bidirectional_attention_is() -> None:
    assert natures(EVERY["modernbert"].build()) == ["bidirectional", "bidirectional in a window of 4"]
    assert natures(EVERY["bert"].build()) == ["bidirectional", "bidirectional"]


def test_a_text_tower_that_calls_itself_causal_is_a_decoder() -> None:
    """CLIP's attention modules say is_causal=False, and every call of the text tower says True."""
    found = {module.name: module for module in attention_modules(EVERY["clip"].build())}
    assert {name for name, module in found.items() if module.causal} == {
        "text_model.encoder.layers.0.self_attn",
        "text_model.encoder.layers.1.self_attn",
    }
    assert not any(module.causal for module in attention_modules(EVERY["siglip"].build()))


def test_layers_that_share_one_module_are_one_module() -> None:
    albert = transformers.AlbertModel(transformers.AlbertConfig(**SMALL, embedding_size=8, num_hidden_layers=3))
    assert len(attention_modules(albert)) == 1


class FusedAttention(nn.MultiheadAttention):
    pass


class ScaledAttention(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class HoldingAttention(ScaledAttention):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ScaledAttention()


def test_attention_that_neither_route_reaches_is_named() -> None:
    model = nn.Sequential(FusedAttention(8, 2))
    assert attention_modules(model) == []
    assert unreachable_attention(model) == ["FusedAttention"]
    with pytest.raises(NotPatchableError, match="Sequential cannot be patched: its FusedAttention computes attention"):
        require_attention_modules(model)
    beside = nn.Sequential(FusedAttention(8, 2), HoldingAttention())
    assert unreachable_attention(beside) == ["FusedAttention"]


def test_of_nested_modules_the_innermost_is_intercepted() -> None:
    found = attention_modules(nn.Sequential(HoldingAttention(), ScaledAttention()))
    assert [(m.name, m.route) for m in found] == [("0.inner", "interception"), ("1", "interception")]


class Towers(PreTrainedModel):
    """A language model with a part of another kind."""

    def __init__(self, vision: PreTrainedModel) -> None:
        super().__init__(PreTrainedConfig())
        self.text, self.vision = nn.ModuleList([ScaledAttention()]), vision


class TowersForCausalLM(Towers):
    pass


def test_a_part_with_a_configuration_of_its_own_is_no_decoder_because_the_whole_is() -> None:
    vision = transformers.MPNetModel(transformers.MPNetConfig(**SMALL, num_hidden_layers=1))
    stacks = {m.name: m.stack for m in attention_modules(TowersForCausalLM(vision))}
    assert stacks == {"text.0": "decoder", "vision.encoder.layer.0.attention.attn": "encoder"}
    assert {m.stack for m in attention_modules(Towers(vision))} == {"encoder"}


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(NotPatchableError, match="Sequential cannot be patched: it has no attention module"):
        require_attention_modules(nn.Sequential(nn.Linear(2, 2)))
