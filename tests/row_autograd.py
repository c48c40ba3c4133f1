"""Gradients of attention as ordinary autograd has them, from one expression with every (query, key) pair in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hf_sparsify.patcher.methods import AttentionInputs
from hf_sparsify.patcher.methods.distance_bias import DistanceBias
from row_oracle import run
from tiny_models import visible_keys
from torch import Tensor

NAMES = ("query", "key", "value", "bias", "sinks")
Attend = Callable[[AttentionInputs], Tensor]


def attended(call: AttentionInputs, kept: Tensor | None = None, dropped_out: Tensor | None = None) -> Tensor:
    """Softmax over the kept keys, bool [B, H, q, n] (None: all that are visible). dropped_out: factors of weights."""
    repeats = call.query.shape[1] // call.key.shape[1]
    key, value = (part.repeat_interleave(repeats, 1) for part in (call.key, call.value))
    scores = call.query @ key.mT * call.scale
    if call.bias is not None:
        scores = scores + (call.bias.whole() if isinstance(call.bias, DistanceBias) else call.bias)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    keep = visible_keys(call.visibility, *scores.shape)
    scores = scores.masked_fill(~(keep if kept is None else keep & kept), torch.finfo(scores.dtype).min)
    if call.sinks is not None:
        scores = torch.cat([scores, call.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]] * keep.any(-1, keepdim=True)
    return (weights if dropped_out is None else weights * dropped_out) @ value


def gradients(attend: Attend, call: AttentionInputs, wanted: tuple[str, ...] = NAMES) -> dict[str, Tensor | None]:
    """The output and the gradients of a weighted sum of it, by name. Tensors that are not wanted need none."""
    leaves: dict[str, Any] = {}
    for name in NAMES:
        part = getattr(call, name)
        if part is not None:
            tensor = part.by_distance if isinstance(part, DistanceBias) else part
            leaves[name] = tensor.detach().clone().requires_grad_(name in wanted)
    parts = dict(leaves)
    if isinstance(call.bias, DistanceBias):
        parts["bias"] = replace(call.bias, by_distance=leaves["bias"])
    out = attend(replace(call, **parts))
    out.backward(torch.cos(torch.arange(out.numel())).view(out.shape).to(out))
    return {"output": out.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def assert_equal(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 1e-12) -> None:
    """The same gradients, and None for the same tensors."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] is None) == (tensor is None), name
        if tensor is not None:
            torch.testing.assert_close(
                found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def assert_as_autograd(
    method: Any, call: AttentionInputs, table: Any = None, *, tolerance: float = 1e-12, **options: Any
) -> dict[str, Tensor | None]:
    """Checks a method without compensation against `attended` with the keys that it keeps; gives its gradients."""
    kept = run(call, method, table).kept
    found = gradients(lambda c: run(c, method, table, **options).output, call)
    assert_equal(found, gradients(lambda c: attended(c, kept), call), tolerance)
    return found
