"""Calls that are too short for their method: torch's own attention, as in an unpatched module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE, ModulePatch, attention_forward
from hf_sparsify.patcher.binding.masks import build_mask
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.methods.chunk import Chunk
from tiny_models import attention_inputs
from torch import Tensor, nn

BATCH, HEADS, GROUPS, LENGTH = 2, 4, 2, 7
SHORT = f"dense: fewer than {LENGTH + 1} keys"
METHODS = [TopK(k=2, min_length=LENGTH + 1), TopTheta(k=2, min_length=LENGTH + 1, compensation="sdc+vmc")]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def padded(side: str) -> Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[1, slice(0, 2) if side == "left" else slice(-2, None)] = False
    return mask


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "causal": lambda: build_mask(BATCH, LENGTH, LENGTH),
    "left": lambda: build_mask(BATCH, LENGTH, LENGTH, attention_mask=padded("left")),
    "right": lambda: build_mask(BATCH, LENGTH, LENGTH, attention_mask=padded("right")),
    "boolean": lambda: torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
}


def attend(method: AttentionMethod, mask: Tensor | None, queries: int = LENGTH, **options: Any) -> Any:
    """What a patched module gives, and its patch."""
    call = attention_inputs(queries=queries, keys=LENGTH)
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = True, HEADS // GROUPS
    parts = {name: options.pop(name) for name in ("meter", "observer") if name in options}
    patch = ModulePatch("layers.3.attn", "self", method, **parts)
    setattr(module, PATCH_ATTRIBUTE, patch)
    return attention_forward(module, call.query, call.key, call.value, mask, scaling=0.7, **options)[0], patch


@each_method
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_short_calls_are_the_dense_ones(mask: str, bias: bool, method: AttentionMethod) -> None:
    options = {"position_bias": attention_inputs(bias=True).bias} if bias else {}
    out, patch = attend(method, MASKS[mask](), **options)
    assert (dict(patch.paths), patch.calls) == ({SHORT: 1}, 1)
    expected, other = attend(TopK(k=LENGTH), MASKS[mask](), **options)
    assert SHORT not in other.paths
    real = padded(mask) if mask in ("left", "right") else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(out[real], expected[real], rtol=1e-12, atol=1e-12)
    assert bool(torch.isfinite(out).all())


@each_method
def test_a_step_is_short_while_its_keys_are_few(method: AttentionMethod) -> None:
    out, patch = attend(method, None, queries=1)
    assert dict(patch.paths) == {SHORT: 1}
    torch.testing.assert_close(out, attend(TopK(k=LENGTH), None, queries=1)[0], rtol=1e-12, atol=1e-12)
    _, enough = attend(TopK(k=2, min_length=LENGTH), None, queries=1)
    assert not any(path.startswith("dense") for path in enough.paths)


@each_method
@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"s_aux": torch.ones(HEADS, dtype=torch.float64)}], ids=str)
def test_what_torch_has_no_attention_for_runs_the_method(options: dict[str, Any], method: AttentionMethod) -> None:
    out, patch = attend(method, None, **options)
    assert not any(path.startswith("dense") for path in patch.paths)
    torch.testing.assert_close(out, attend(TopK(k=LENGTH), None, **options)[0], rtol=1e-12, atol=1e-12)


@each_method
def test_the_meter_counts_short_calls(method: AttentionMethod) -> None:
    meter = Meter()
    attend(method, MASKS["left"](), meter=meter)
    counted = meter.modules["layers.3.attn"]
    assert counted.rows == HEADS * (7 + 5)
    assert counted.kept == counted.visible == HEADS * (28 + 15)
    assert (counted.long_rows, counted.fallback_rows) == (0, 0)


@each_method
def test_an_observer_sees_short_calls(method: AttentionMethod) -> None:
    seen: list[Chunk] = []
    attend(method, None, observer=seen.append)
    assert sum(chunk.stop - chunk.start for chunk in seen) == LENGTH
