"""What is read off the modules of each family."""

from __future__ import annotations

from typing import Any

import feed_forward_models
import pytest
from hf_sparsify.inspection.facts import attention_facts, feed_forward_facts
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.modules import attention_modules

WORDS = ("kind", "stack", "causal", "window", "heads", "kv_heads", "head_size", "position_bias", "soft_cap", "sinks")


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {("self", "decoder", True, None, 4, 2, 8, None, None, False)}),
        ("gpt2", {("self", "decoder", True, None, 4, 4, 8, None, None, False)}),
        ("bert", {("self", "encoder", False, None, 4, 4, 8, None, None, False)}),
        (
            "gemma2",
            {
                ("self", "decoder", True, 5, 4, 2, 8, None, 5.0, False),
                ("self", "decoder", True, None, 4, 2, 8, None, 5.0, False),
            },
        ),
        (
            "gpt_oss",
            {
                ("self", "decoder", True, 5, 4, 2, 8, None, None, True),
                ("self", "decoder", True, None, 4, 2, 8, None, None, True),
            },
        ),
        (
            "t5",
            {
                ("self", "encoder", False, None, 4, 4, 8, "position bias", None, False),
                ("self", "decoder", True, None, 4, 4, 8, "position bias", None, False),
                ("cross", "decoder", False, None, 4, 4, 8, None, None, False),
            },
        ),
        (
            "modernbert",
            {
                ("self", "encoder", False, None, 4, 4, 8, None, None, False),
                ("self", "encoder", False, 65, 4, 4, 8, None, None, False),
            },
        ),
    ],
)
def test_attention(family: str, expected: set[tuple[Any, ...]]) -> None:
    found = [attention_facts(target) for target in attention_modules(feed_forward_models.make(family))]
    assert {tuple(getattr(facts, word) for word in WORDS) for facts in found} == expected


def test_which_methods_a_module_takes() -> None:
    found = {
        facts.name: facts.methods for facts in map(attention_facts, attention_modules(feed_forward_models.make("t5")))
    }
    assert found["encoder.block.0.layer.0.SelfAttention"] == ("top-k", "top-theta", "clustered")
    assert found["decoder.block.0.layer.0.SelfAttention"] == ("top-k", "top-theta")
    assert found["decoder.block.0.layer.1.EncDecAttention"] == ("top-k", "top-theta")


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", (40, True, "silu")),
        ("t5", (40, False, "relu")),
        ("t5-gated", (40, True, "gelu_new")),
        ("modernbert", (40, True, "gelu")),
        ("gpt2", (128, False, "gelu_new")),
        ("bert", (40, False, "gelu")),
        ("opt", (40, False, "relu")),
    ],
)
def test_feed_forward_layers(family: str, expected: tuple[Any, ...]) -> None:
    model = feed_forward_models.make(family)
    found = [feed_forward_facts(model, layer) for layer in feed_forward_modules(model)]
    assert {(facts.d_ff, facts.gated, facts.activation) for facts in found} == {expected}
    assert {facts.methods for facts in found} == {("top-k-feed-forward",)}
