"""Small calls of top-k and top-theta for the Triton kernels, held against the torch definition in float64.

Queries and keys are small whole numbers and the scale a power of two, so that scores are exact in every dtype: ties are
real ties, and nothing is selected differently by rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hf_sparsify.patcher.kernels import triton_rows
from hf_sparsify.patcher.methods import AttentionInputs, TopK, TopTheta
from hf_sparsify.patcher.methods.chunk import RowCounts
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from hf_sparsify.patcher.thresholds import ModuleThresholds
from tiny_models import visibility
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THETA = {"post-softmax": -4.0, "max-relative": -2.0, "pre-softmax": 1.0}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def whole(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-2, 3, shape, generator=generator).float()


def problem(
    layout: str = "causal",
    *,
    batch: int = 2,
    groups: int = 1,
    group: int = 2,
    queries: int = 2,
    keys: int = 37,
    width: int = 16,
    value_width: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **more: Any,
) -> AttentionInputs:
    """A call; layout as in tiny_models.visibility. more: fields of AttentionInputs."""
    generator, heads = torch.Generator().manual_seed(seed), groups * group
    query = whole(batch, heads, queries, width, generator=generator)
    key = whole(batch, groups, keys, width, generator=generator)
    value = torch.randn(batch, groups, keys, value_width, generator=generator)
    seen = visibility(layout, batch, heads, queries, keys)
    fields = {"visibility": seen, "scale": 0.25, **more}
    return AttentionInputs(query.to(dtype), key.to(dtype), value.to(dtype), **fields)


def table(inputs: AttentionInputs, method: TopK | TopTheta, shortest: int = 2) -> ModuleThresholds | None:
    """A threshold for every row of `shortest` keys or more."""
    if not isinstance(method, TopTheta):
        return None
    generator, heads = torch.Generator().manual_seed(7), inputs.query.shape[1]
    theta = THETA[method.placement] + torch.rand(heads, 3, generator=generator)
    dropped = torch.rand(heads, 3, generator=generator) * 4
    lengths = torch.tensor([5.0, 20.0, 90.0])
    return ModuleThresholds(lengths, theta, shortest, 400, placement=method.placement, dropped=dropped)


def moved(inputs: AttentionInputs, device: str = DEVICE) -> AttentionInputs:
    """The same call on a device."""
    parts: dict[str, Any] = {"visibility": inputs.visibility.to(torch.device(device))}
    for name in ("query", "key", "value", "bias", "sinks", "value_sum"):
        part = getattr(inputs, name)
        if isinstance(part, DistanceBias):
            parts[name] = replace(part, by_distance=part.by_distance.to(device))
        elif part is not None:
            parts[name] = part.to(device)
    return replace(inputs, **parts)


def attended(
    inputs: AttentionInputs, method: TopK | TopTheta, thresholds: ModuleThresholds | None = None
) -> tuple[Tensor, RowCounts]:
    """What Triton gives, on the CPU, with its counts."""
    call = moved(inputs)
    assert triton_rows.refusal(call, method) is None
    out, counts = triton_rows.attend(call, method, thresholds, count=True)
    assert counts is not None
    v_rows = None if counts.v_rows is None else counts.v_rows.cpu()
    return out.cpu(), RowCounts(counts.kept.cpu(), counts.fallback.cpu(), counts.rescued.cpu(), v_rows)


def check(inputs: AttentionInputs, method: TopK | TopTheta, thresholds: ModuleThresholds | None = None) -> None:
    """Compares output and counts with the definition."""
    out, counts = attended(inputs, method, thresholds)
    wide = {name: getattr(inputs, name).double() for name in ("query", "key", "value")}
    expected, counted = method.attend(replace(inputs, **wide), thresholds=thresholds, count=True)
    assert counted is not None
    tolerance = TOLERANCE[inputs.value.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(counts.kept, counted.kept)
    assert torch.equal(counts.fallback, counted.fallback)
    assert torch.equal(counts.rescued, counted.rescued)
    if inputs.query.shape[2] == 1:
        assert torch.equal(counts.v_rows, counted.v_rows)
    else:
        assert counts.v_rows is None
