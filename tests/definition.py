"""Compares every call of a patched model's attention and feed-forward modules with their definition, as they happen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from clustered_oracle import oracle
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME, PATCH_ATTRIBUTE, ModulePatch
from hf_sparsify.patcher.binding.patching import current_patch
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, FullMask, TopKFeedForward
from hf_sparsify.patcher.methods.clustered import sequence_at
from hf_sparsify.patcher.thresholds import ModuleThresholds
from row_oracle import row_by_row
from torch import Tensor, nn
from transformers import AttentionInterface

TOLERANCE: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


class TableOf:
    """A module's thresholds as row_oracle asks for them."""

    def __init__(self, thresholds: ModuleThresholds) -> None:
        self.thresholds = thresholds

    def at(self, head: int, length: int) -> float:
        return float(self.thresholds.lookup(torch.tensor([[[length]]]))[0, head, 0])


def check_every_call(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From now on each call of a patched module of this float64 model is compared with the definition of its method.

    Returns how many calls each module has made. Every attention method, and top-k feed-forward.
    """
    calls: Counter[str] = Counter()
    attend = AttentionInterface._global_mapping[ATTENTION_NAME]

    def checked(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        out = attend(module, query, key, value, attention_mask, **kwargs)
        patch: ModulePatch | None = getattr(module, PATCH_ATTRIBUTE, None)
        if patch is not None:
            call = _inputs(module, query, key, value, attention_mask, **kwargs)
            torch.testing.assert_close(out[0].transpose(1, 2), defined(call, patch), **TOLERANCE)
            calls[patch.name] += 1
        return out

    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION_NAME, checked)

    def compare(module: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str, method: TopKFeedForward) -> None:
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.T  # type: ignore[union-attr]
        expected = nn.functional.linear(strongest(args[0], method), weight, module.bias)  # type: ignore[arg-type]
        real = args[0].isfinite().all(-1)  # dense attention may give NaN for padding that sees nothing
        torch.testing.assert_close(out[real], expected[real], **TOLERANCE)
        calls[name] += 1

    for layer in current_patch(model).feed_forward:
        layer.module.register_forward_hook(
            lambda module, args, out, name=layer.name, method=layer.method: compare(module, args, out, name, method)
        )
    return calls


def strongest(hidden: Tensor, method: TopKFeedForward) -> Tensor:
    """hidden [..., d_ff] with all but its k largest magnitudes set to 0."""
    assert method.k is not None
    smallest = hidden.abs().sort(-1, descending=True).values[..., method.k - 1 : method.k]
    return torch.where(hidden.abs() >= smallest, hidden, 0)


def defined(call: AttentionInputs, patch: ModulePatch) -> Tensor:
    """What a module's method gives by its definition: [B, H, q, E]."""
    if isinstance(patch.method, Clustered):
        return _one_cluster(call, patch.method.k)
    table: Any = None if patch.thresholds is None else TableOf(patch.thresholds)
    return row_by_row(call, patch.method, table).output  # type: ignore[arg-type]


def _one_cluster(call: AttentionInputs, refined: int) -> Tensor:
    """Every sequence by itself, all its queries in one cluster; zeros for padding."""
    assert isinstance(call.visibility, FullMask)
    out = torch.zeros(*call.query.shape[:3], call.value.shape[-1], dtype=torch.float64)
    seen = call.visibility.visible.any(1).any(1).expand(call.query.shape[0], -1)
    for index in range(call.query.shape[0]):
        positions = seen[index].nonzero().squeeze(-1)
        if len(positions):
            part = sequence_at(call, index, positions)
            out[index, :, positions] = oracle(part, torch.zeros(part.query.shape[:3], dtype=torch.int64), refined)[0]
    return out


def _inputs(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> AttentionInputs:
    """A call's arguments, with what each row sees spelled out."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    queries, keys = query.shape[2], key.shape[2]
    return AttentionInputs(
        query=query,
        key=key,
        value=value,
        visibility=FullMask(_visible(mask, queries, keys, causal=is_causal)),
        scale=scaling,
        bias=_whole_bias(position_bias, queries, keys),  # float masks of these models add nothing
        softcap=softcap,
        sinks=s_aux,
    )


def _whole_bias(position_bias: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """[B or 1, H or 1, queries, keys], each number looked up by itself where the bias is by distance."""
    if position_bias is None or position_bias.shape[-1] == 0:
        return None
    if position_bias.ndim == 3:
        return position_bias[..., torch.arange(keys) - torch.arange(queries).unsqueeze(1) + queries - 1]
    return position_bias[..., :keys]


def _visible(mask: Tensor | None, queries: int, keys: int, *, causal: bool) -> Tensor:
    """bool [B or 1, 1, queries, keys]. Without a mask causal rows see the keys up to their own."""
    if mask is None:
        whole = torch.ones(1, 1, queries, keys, dtype=torch.bool)
        return whole.tril() if causal and queries > 1 else whole
    if mask.dtype == torch.int32:  # the first and the last key of each row
        position = torch.arange(keys)
        return (position >= mask[..., 0:1]) & (position < mask[..., 1:2])
    visible = mask if mask.dtype == torch.bool else mask == 0
    return visible[..., :keys].expand(-1, -1, queries, -1)
