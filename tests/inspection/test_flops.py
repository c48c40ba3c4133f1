"""What is counted is what the shapes say."""

from __future__ import annotations

from typing import Any

import feed_forward_models
import pytest
import torch
import transformers
from hf_sparsify.inspection.flops import Work, count, visible_pairs, why_not
from hf_sparsify.inspection.skeleton import _build
from torch import nn

TOKENS = 48
LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 3, 32, 40, 4, 2, 8, 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}


def skeleton(config: Any, found: Any) -> Any:
    return _build(found, config, torch.float32)


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=KV_HEADS, head_dim=HEAD, **changes)
    return skeleton(config, transformers.LlamaForCausalLM)


def linear_elements(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def test_llama_in_closed_form() -> None:
    model = llama()
    head = VOCABULARY * WIDTH
    weights = LAYERS * (WIDTH * HEAD * (HEADS + 2 * KV_HEADS) + HEADS * HEAD * WIDTH + 3 * WIDTH * INNER)
    assert linear_elements(model) == weights + head
    phases = count(model, TOKENS)
    prefill, decode = phases["prefill"], phases["decode"]
    # A product of scores and one of values for every pair that may be seen, two operations each.
    pairs = TOKENS * (TOKENS + 1) // 2
    assert set(prefill.attention.values()) == {2 * 2 * HEADS * HEAD * pairs}
    assert list(prefill.attention) == [f"model.layers.{i}.self_attn" for i in range(LAYERS)]
    assert set(prefill.feed_forward.values()) == {2 * WIDTH * INNER * TOKENS}
    attention = LAYERS * 2 * 2 * HEADS * HEAD * pairs
    # Of the last token alone is it asked what comes next.
    assert prefill.total == attention + 2 * weights * TOKENS + 2 * head
    assert set(decode.attention.values()) == {2 * 2 * HEADS * HEAD * (TOKENS + 1)}
    assert decode.total == LAYERS * 2 * 2 * HEADS * HEAD * (TOKENS + 1) + 2 * (weights + head)
    assert decode.cache_bytes == LAYERS * 2 * KV_HEADS * HEAD * TOKENS * 4
    assert decode.weight_bytes(torch.float32) == 4 * (weights + head)


def test_bert_in_closed_form() -> None:
    model = skeleton(transformers.BertConfig(**SIZES), transformers.BertForQuestionAnswering)
    [(phase, work)] = count(model, TOKENS).items()
    attention = LAYERS * 2 * 2 * WIDTH * TOKENS**2
    weights = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * INNER) + 2 * WIDTH
    assert (phase, sum(work.attention.values())) == ("forward", attention)
    assert sum(work.feed_forward.values()) == LAYERS * 2 * WIDTH * INNER * TOKENS
    assert work.total == attention + 2 * weights * TOKENS


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 9])
def test_visible_pairs(causal: bool, window: int | None) -> None:
    reach = window or 100
    seen = [(i, j) for i in range(7) for j in range(7) if abs(i - j) < reach and (j <= i or not causal)]
    assert visible_pairs(7, causal, window) == len(seen)


def test_a_window_is_seen_in_reading_and_in_decoding() -> None:
    config = transformers.MistralConfig(**SIZES, num_key_value_heads=KV_HEADS, head_dim=HEAD, sliding_window=5)
    phases = count(skeleton(config, transformers.MistralForCausalLM), TOKENS)
    assert set(phases["prefill"].attention.values()) == {4 * HEADS * HEAD * visible_pairs(TOKENS, True, 5)}
    assert set(phases["decode"].attention.values()) == {4 * HEADS * HEAD * 5}


def test_of_a_mixture_of_experts_the_chosen_ones_count() -> None:
    config = transformers.MixtralConfig(
        **SIZES, num_key_value_heads=KV_HEADS, num_local_experts=4, num_experts_per_tok=2
    )
    model = skeleton(config, transformers.MixtralForCausalLM)
    read = count(model, TOKENS)["decode"].weight_bytes(torch.float32) // 4
    experts, router = 2 * 3 * WIDTH * INNER, 4 * WIDTH
    attention = WIDTH * HEAD * (HEADS + 2 * KV_HEADS) + HEADS * HEAD * WIDTH
    assert read == LAYERS * (experts + router + attention) + VOCABULARY * WIDTH


def test_an_encoder_reads_and_its_decoder_writes_one_token() -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=HEAD, d_ff=INNER, num_layers=1, num_heads=HEADS
    )
    phases = count(skeleton(config, transformers.T5ForConditionalGeneration), TOKENS)
    each = 4 * HEADS * HEAD
    assert list(phases["prefill"].attention.values()) == [each * TOKENS**2, each, each * TOKENS]
    assert list(phases["decode"].attention.values()) == [0, 2 * each, each * TOKENS]
    assert phases["decode"].cache_bytes == 2 * HEADS * HEAD * (TOKENS + 1) * 4


@pytest.mark.parametrize(
    "name", [name for name in feed_forward_models.NAMES if name not in ("vit", "clip", "bert-cross", "moonshine")]
)
def test_every_family_is_counted(name: str) -> None:
    made = feed_forward_models.make(name)
    model = skeleton(made.config, type(made))
    assert why_not(model) is None
    for work in count(model, 16).values():
        assert work.total > sum(work.attention.values()) + sum(work.feed_forward.values()) > 0
        assert all(flops > 0 for name, flops in work.attention.items() if "encoder" not in name)


def test_attention_outside_the_interface_is_counted() -> None:
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=HEADS)
    phases = count(skeleton(config, transformers.BloomForCausalLM), TOKENS)
    assert list(phases["prefill"].attention.values()) == [4 * WIDTH * visible_pairs(TOKENS, True, None)] * 2


def test_what_takes_no_tokens_is_not_counted() -> None:
    model = skeleton(transformers.ViTConfig(**{**SIZES, "image_size": 8, "patch_size": 4}), transformers.ViTModel)
    assert why_not(model) == "ViTModel takes no tokens"


def test_state_space_layers_are_not_counted() -> None:
    model = skeleton(transformers.MambaConfig(hidden_size=16, num_hidden_layers=1), transformers.MambaForCausalLM)
    assert "state-space" in str(why_not(model))


def test_weights_read_are_half_the_operations() -> None:
    assert Work(total=110, attention={"a": 10}).weight_bytes(torch.bfloat16) == 100
