"""What a model says, whatever its output calls it, and whether that is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotPatchableError, SparsifyError
from .dtypes import dtype_name

FIELDS = ("logits", "start_logits", "logits_per_image", "last_hidden_state")


def features(output: Any) -> Tensor:
    """The scores or hidden states [B, n, features] of a forward call. NotPatchableError if there are neither."""
    found = _features(output)
    if found is None:
        raise NotPatchableError("the model returns neither logits nor hidden states: use --no-verify")
    return found


def _features(output: Any) -> Tensor | None:
    values = (getattr(output, name, None) for name in FIELDS)
    value = next((value for value in values if isinstance(value, Tensor)), None)
    return value.unsqueeze(-1) if value is not None and value.ndim == 2 else value


@contextmanager
def finite_outputs(model: nn.Module, *, patched: bool = False) -> Iterator[None]:
    """Checks what every forward call inside the block says, as require_finite. patched: whether the model is that, and
    its dense outputs are known to be finite."""

    def check(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        require_finite(model, output, kwargs, patched=patched)

    handle = model.register_forward_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def require_finite(model: Any, output: Any, inputs: Mapping[str, Any], *, patched: bool = False) -> None:
    """SparsifyError, with what is wrong and the fix, if a model says NaN or infinity at a real position.

    Minus infinity rules a token out, and is fine. inputs: of the forward call, for its padding.
    """
    values, mask = _features(output), inputs.get("attention_mask")
    if values is None:
        return
    fine = values < math.inf
    if isinstance(mask, Tensor) and mask.shape == fine.shape[:2] and "decoder_input_ids" not in inputs:
        fine |= ~mask.bool().unsqueeze(-1).to(fine.device)  # what stands at padding may be anything
    if not bool(fine.all()):
        raise SparsifyError(_why_patched(model) if patched else _why(model))


def _why(model: Any) -> str:
    """Of a dense model."""
    dtype = dtype_name(model.dtype)
    told = f"the dense model itself gives numbers that are not finite, patched or not: {_name(model)}"
    wider = "use --dtype float32 or bfloat16"
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            if dtype == "float16" and not bool(parameter.isnan().any()):
                return f"{told} has infinities in {name} once it is float16: {wider}"
            return f"{told} has NaN or infinities in {name}: fetch or save its weights again"
    if dtype == "float16":
        return f"{told} has finite weights and overflows in float16: {wider}"
    return f"{told} has finite weights and overflows in {dtype}: check that its config.json goes with its weights"


def _why_patched(model: Any) -> str:
    return (
        f"the patched model gives numbers that are not finite, and the dense one does not: {_name(model)} "
        f"in {dtype_name(model.dtype)}: use --dtype float32, or check the recipe with `sparsify validate`"
    )


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__
