"""The attention function that transformers calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.errors import NotPatchableError, UnsupportedAttentionArgument
from hf_sparsify.patcher.binding.attention import (
    ATTENTION_NAME,
    PATCH_ATTRIBUTE,
    ModulePatch,
    attention_forward,
    register,
)
from hf_sparsify.patcher.binding.masks import build_mask
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import Chunk, TopK, TopTheta
from tiny_models import attention_inputs, brute_force, everything, highest
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function

BATCH, HEADS, GROUPS, LENGTH, WIDTH = 2, 4, 2, 7, 3


class Attention(nn.Module):
    """Stands for an attention module of a model."""

    def __init__(self, is_causal: bool | None = True, patch: ModulePatch | None = None) -> None:
        super().__init__()
        self.num_key_value_groups = HEADS // GROUPS
        if is_causal is not None:
            self.is_causal = is_causal
        if patch is not None:
            setattr(self, PATCH_ATTRIBUTE, patch)


def top_k(k: int, kind: str = "self", **fields: Any) -> ModulePatch:
    return ModulePatch("layers.3.attn", kind, TopK(k=k), **fields)


def tensors(queries: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    call = attention_inputs(queries=queries, keys=LENGTH)
    return call.query, call.key, call.value


def sdpa(module: nn.Module, mask: Tensor | None = None, **options: Any) -> Tensor:
    return sdpa_attention_forward(module, *tensors(), mask, **options)[0]


def padded() -> Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, -2:] = False
    return mask


@pytest.mark.parametrize("patch", [None, top_k(LENGTH)], ids=["dense module", "patched module"])
@pytest.mark.parametrize("mask", ["none", "ours", "ours, padded", "boolean", "float"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_whole_row_equals_sdpa(mask: str, bias: bool, patch: ModulePatch | None) -> None:
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1)
    given: Tensor | None = None
    if mask == "ours":
        given = build_mask(BATCH, LENGTH, LENGTH)
    elif mask == "ours, padded":
        given = build_mask(BATCH, LENGTH, LENGTH, attention_mask=padded())
        visible = visible & padded()[:, None, None]
    elif mask == "boolean":
        given = visible
    elif mask == "float":
        given = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    options: dict[str, Any] = {"scaling": 0.7}
    if bias:
        options["position_bias"] = attention_inputs(bias=True).bias
    out, weights = attention_forward(Attention(patch=patch), *tensors(), given, **options)
    assert weights is None
    assert out.shape == (BATCH, LENGTH, HEADS, WIDTH + 1)
    assert out.is_contiguous()
    torch.testing.assert_close(out, sdpa(Attention(), visible, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch", [None, top_k(LENGTH)], ids=["dense module", "patched module"])
def test_what_the_mask_says_goes_before_what_the_module_says(patch: ModulePatch | None) -> None:
    mask = build_mask(BATCH, LENGTH, LENGTH, mask_function=bidirectional_mask_function)
    out, _ = attention_forward(Attention(True, patch), *tensors(), mask, scaling=0.7)
    torch.testing.assert_close(out, sdpa(Attention(False), scaling=0.7), rtol=1e-12, atol=1e-12)


def test_a_position_bias_may_be_longer_than_the_keys() -> None:
    bias = attention_inputs(keys=LENGTH + 3, bias=True).bias
    assert bias is not None
    out, _ = attention_forward(Attention(patch=top_k(LENGTH)), *tensors(), None, scaling=0.7, position_bias=bias)
    expected = sdpa(Attention(), scaling=0.7, position_bias=bias[..., :LENGTH])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_default_scale_is_that_of_sdpa() -> None:
    out, _ = attention_forward(Attention(patch=top_k(LENGTH)), *tensors(), None)
    torch.testing.assert_close(out, sdpa(Attention()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch", [None, top_k(LENGTH)], ids=["dense module", "patched module"])
@pytest.mark.parametrize(
    ("says", "keyword", "causal"),
    [(True, None, True), (False, None, False), (None, None, False), (False, True, True), (True, False, False)],
)
def test_without_a_mask_the_keyword_then_the_module_decide(
    says: bool | None, keyword: bool | None, causal: bool, patch: ModulePatch | None
) -> None:
    out, _ = attention_forward(Attention(says, patch), *tensors(), None, scaling=0.7, is_causal=keyword)
    expected = sdpa(Attention(causal), scaling=0.7)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected, sdpa(Attention(not causal), scaling=0.7))


def test_a_patched_module_runs_its_method() -> None:
    patch = top_k(2)
    out, _ = attention_forward(Attention(patch=patch), *tensors(), None, scaling=0.7)
    expected, _ = brute_force(attention_inputs(), highest(2))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)
    assert patch.calls == 1
    assert not torch.allclose(out, sdpa(Attention(), scaling=0.7))


@pytest.mark.parametrize("patch", [None, top_k(3)], ids=["dense module", "patched module"])
def test_soft_cap_and_sinks(patch: ModulePatch | None) -> None:
    call = attention_inputs(softcap=2.0, sinks=True)
    out, _ = attention_forward(Attention(patch=patch), *tensors(), None, scaling=0.7, softcap=2.0, s_aux=call.sinks)
    expected, _ = brute_force(call, everything if patch is None else highest(3))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch", [None, top_k(2)], ids=["dense module", "patched module"])
def test_unknown_arguments_are_refused_by_name(patch: ModulePatch | None) -> None:
    where = "layers.3.attn" if patch is not None else "Attention"
    with pytest.raises(UnsupportedAttentionArgument, match=f"^{where} hands .* block_indices, indices,") as caught:
        attention_forward(Attention(patch=patch), *tensors(), None, indices=torch.ones(1), block_indices=0)
    assert isinstance(caught.value, NotPatchableError)
    assert isinstance(caught.value, NotImplementedError)
    assert patch is None or patch.calls == 0


def test_known_and_empty_arguments_are_accepted() -> None:
    arguments = {"indices": None, "position_ids": torch.ones(1), "use_cache": True, "sliding_window": 3}
    arguments |= {"logits_to_keep": 1}  # GOT-OCR2 hands on all that it is given
    out, _ = attention_forward(Attention(patch=top_k(2)), *tensors(), None, scaling=0.7, **arguments)
    plain, _ = attention_forward(Attention(patch=top_k(2)), *tensors(), None, scaling=0.7)
    assert torch.equal(out, plain)


def test_a_causal_call_without_a_mask_and_with_a_cache_is_refused() -> None:
    with pytest.raises(NotPatchableError, match="without a mask"):
        attention_forward(Attention(patch=top_k(2)), *tensors(queries=3), None)


def test_one_query_without_a_mask_sees_every_key() -> None:
    out, _ = attention_forward(Attention(patch=top_k(LENGTH)), *tensors(queries=1), None, scaling=0.7)
    expected, _ = brute_force(attention_inputs("all", queries=1, keys=LENGTH), everything)
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_the_meter_counts_real_queries_of_self_attention() -> None:
    meter = Meter()
    mask = build_mask(BATCH, LENGTH, LENGTH, attention_mask=padded())
    attention_forward(Attention(patch=top_k(2, meter=meter)), *tensors(), mask)
    counted = meter.modules["layers.3.attn"]
    assert counted.rows == HEADS * (7 + 5)
    assert counted.kept == HEADS * ((1 + 2 * 6) + (1 + 2 * 4))
    assert counted.visible == HEADS * (28 + 15)
    assert counted.v_rows == 0


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_v_rows_are_counted_for_one_query(kind: str) -> None:
    for queries, expected in ((1, BATCH * GROUPS * LENGTH), (LENGTH, 0)):
        meter = Meter()
        attention_forward(Attention(patch=top_k(2, kind, meter=meter)), *tensors(queries), None)
        assert meter.modules["layers.3.attn"].v_rows == expected
        assert meter.modules["layers.3.attn"].rows == BATCH * HEADS * queries


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [TopK(k=2), TopTheta(k=2, compensation="sdc+vmc")], ids=["top-k", "top-theta"])
def test_bytes_of_a_decoding_step_are_its_rows_in_the_dtype_of_the_cache(
    method: TopK | TopTheta, dtype: torch.dtype
) -> None:
    """Every key is read, because its score decides; of the values the union over the heads of a group."""
    call = attention_inputs(queries=1, keys=LENGTH, dtype=dtype)
    meter = Meter()
    module = Attention(patch=ModulePatch("layers.3.attn", "self", method, meter=meter))
    attention_forward(module, call.query, call.key, call.value, None, scaling=0.7)
    counted = meter.modules["layers.3.attn"]
    _, kept = brute_force(call, highest(2))
    union = int(kept.view(BATCH, GROUPS, HEADS // GROUPS, LENGTH).any(2).sum())
    size = torch.empty((), dtype=dtype).element_size()
    assert counted.v_rows_kept == union
    assert counted.key_bytes == BATCH * GROUPS * LENGTH * WIDTH * size
    assert counted.value_bytes == BATCH * GROUPS * LENGTH * (WIDTH + 1) * size
    assert counted.value_bytes_kept == union * (WIDTH + 1) * size
    share = (counted.key_bytes + counted.value_bytes_kept) / (counted.key_bytes + counted.value_bytes)
    assert meter.summary()["total"]["decode_kv_bytes_share"] == pytest.approx(share)
    assert 0.4 < share < 1


def test_a_prefill_has_no_bytes_of_decoding() -> None:
    meter = Meter()
    attention_forward(Attention(patch=top_k(2, meter=meter)), *tensors(), None)
    assert meter.modules["layers.3.attn"].key_bytes == 0
    assert meter.summary()["total"]["decode_kv_bytes_share"] is None


def test_cross_attention_does_not_read_source_padding_as_query_padding() -> None:
    meter = Meter()
    mask = build_mask(BATCH, LENGTH, LENGTH, attention_mask=padded(), mask_function=bidirectional_mask_function)
    attention_forward(Attention(False, top_k(2, "cross", meter=meter)), *tensors(), mask)
    assert meter.modules["layers.3.attn"].rows == BATCH * HEADS * LENGTH


def test_the_observer_sees_scores() -> None:
    seen: list[Chunk] = []
    attention_forward(Attention(patch=top_k(2, observer=seen.append)), *tensors(), None)
    assert sum(chunk.stop - chunk.start for chunk in seen) == LENGTH


def test_dropout_is_passed_on() -> None:
    torch.manual_seed(0)
    out, _ = attention_forward(Attention(patch=top_k(LENGTH)), *tensors(), None, scaling=0.7, dropout=0.5)
    assert not torch.allclose(out, sdpa(Attention(), scaling=0.7))


def test_registering_is_repeatable_and_complete() -> None:
    register()
    register()
    assert AttentionInterface._global_mapping[ATTENTION_NAME] is attention_forward
    assert AttentionMaskInterface._global_mapping[ATTENTION_NAME] is build_mask


@pytest.mark.parametrize("part", ["sdpa", "flash", "flex", "paged|", "/", "eager"])
def test_the_name_has_no_part_that_transformers_reads_meaning_into(part: str) -> None:
    assert part not in ATTENTION_NAME


def test_padding_queries_of_a_full_mask_are_not_counted() -> None:
    """Padding with a hole has no interval per row; a token that nobody looks at is padding all the same."""
    keep = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    keep[1, 2] = keep[1, -1] = False
    mask = keep[:, None, None, :].expand(BATCH, 1, LENGTH, LENGTH)
    patch = top_k(3, meter=Meter())
    attention_forward(Attention(is_causal=False, patch=patch), *tensors(), mask)
    counted = patch.meter.modules[patch.name]  # type: ignore[union-attr]
    assert counted.rows == HEADS * (LENGTH + LENGTH - 2)
