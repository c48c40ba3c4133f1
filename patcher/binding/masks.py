"""Masks of transformers <-> Visibility.

The mask builder registered beside the attention function describes what padding, causality and a sliding window hide as
one interval of keys per row: an int32 tensor [B, 1, q, 3] (first key, key after the last, is the query no padding).
Being a plain 4-D tensor it passes through model code, caches and device moves; being int32 it cannot be mistaken for an
ordinary mask. Whatever is not such an interval gets the ordinary boolean [B, 1, q, n] mask.

Padding has to be looked at: whether it leaves one interval. On a GPU that waits for the device, once for each forward
pass, as transformers' own mask of a dense model does; attention calls look at no mask. Transformers asks for an
ordinary mask where a step is to be compiled (one query, a static cache), and a compiler or a CUDA graph that records
gets one too: there nothing looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from ...errors import NotPatchableError
from ..methods import asking
from ..methods.distance_bias import DistanceBias
from ..methods.visibility import FullMask, RowRanges, Visibility
from .distances import read_bias

# Additive masks mean "hidden" by -inf, the smallest float, or, in older models, -1e4 (-9984 in bfloat16).
HIDDEN_BELOW = -9000.0


def build_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """The mask builder for `AttentionMaskInterface` (its arguments: transformers.masking_utils.sdpa_mask).

    Traced by a compiler, or recorded as a CUDA graph, it cannot look at what is padding: padding then gets the ordinary
    mask, as in a model that is not patched.
    """
    traced = torch.compiler.is_compiling() or _is_recorded()
    pattern = None if traced and attention_mask is not None else _recognise(mask_function, kwargs)
    if pattern is not None:
        causal, window = pattern
        offset = q_offset - kv_offset
        ranges = _row_ranges(batch_size, q_length, kv_length, kv_offset, offset, attention_mask, causal, window, kwargs)
        if ranges is not None:
            return ranges
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    full = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # type: ignore[arg-type]  # a tensor for static caches, which sdpa_mask takes
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )
    if full is None:
        raise NotPatchableError("transformers made no mask where one was asked for: this version is not supported")
    return full


def _recognise(mask_function: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[bool, int | None] | None:
    """(causal, window) of a mask that one interval per row can hold, else None. A caller that forbids skipping the mask
    wants to work on an ordinary one."""
    if mask_function is bidirectional_mask_function:
        return (False, None) if kwargs.get("allow_is_bidirectional_skip", True) else None
    if not kwargs.get("allow_is_causal_skip", True):
        return None
    if mask_function is causal_mask_function:
        return True, None
    if torch.compiler.is_compiling():
        return None  # a compiler does not tell what a function closes over
    parts = _closure(mask_function, "and_masks").get("mask_functions", ())
    if len(parts) == 2 and parts[1] is causal_mask_function:
        window = _closure(parts[0], "sliding_window_overlay").get("sliding_window")
        return None if window is None else (True, int(window))
    return None


def _closure(function: Any, maker: str) -> dict[str, Any]:
    """What a function that `maker` of transformers returned closes over; empty for any other."""
    made = inspect.isfunction(function) and function.__qualname__.startswith(f"{maker}.")
    return dict(inspect.getclosurevars(function).nonlocals) if made else {}


def _row_ranges(
    batch: int,
    queries: int,
    keys: int,
    kv_offset: int,
    offset: int | Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    window: int | None,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """int32 [batch, 1, queries, 3]; None where padding has holes. offset: the first query's position among the keys."""
    device = attention_mask.device if attention_mask is not None else kwargs.get("device", "cpu")
    low = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    high = torch.full_like(low, keys)
    padded = False
    if attention_mask is not None:
        valid = attention_mask.bool()
        missing = keys + kv_offset - valid.shape[-1]
        if missing > 0:
            valid = torch.nn.functional.pad(valid, (0, missing))
        valid = valid[:, kv_offset : kv_offset + keys].to(torch.int64)
        total = valid.sum(-1, keepdim=True)
        low = valid.argmax(-1, keepdim=True)
        high = torch.where(total > 0, keys - valid.flip(-1).argmax(-1, keepdim=True), 0)
        holes, padded = look((high - low != total).any(), (total < keys).any())
        if holes:
            return None
    position = (torch.arange(queries, device=device) + offset).unsqueeze(0)
    counted = (position >= low) & (position < high)
    first, last = low.expand(-1, queries), high.expand(-1, queries)
    if causal:
        last = torch.minimum(last, position + 1)
    if window is not None:
        first = torch.maximum(first, position - window + 1)
    last = torch.maximum(first, last)
    ranges = torch.stack([first, last, counted.to(torch.int64)], -1).to(torch.int32).unsqueeze(1)
    wide = window is None or (isinstance(offset, int) and offset + queries <= window)
    if wide and not padded and not torch.compiler.is_compiling():
        _note_plain(ranges, keys, causal, offset)
    return ranges


def _is_recorded() -> bool:
    """Whether a CUDA graph records what runs now."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def look(*conditions: Tensor) -> list[bool]:
    """What these conditions are: the only place where making a mask waits for a GPU."""
    return torch.stack(conditions).tolist()


def _note_plain(ranges: Tensor, keys: int, causal: bool, offset: int | Tensor) -> None:
    """Keeps what ordinary_mask gives for intervals without padding or a narrow window, where sizes tell."""
    if not causal or (isinstance(offset, int) and offset + 1 >= keys):
        made: tuple[Tensor | None, bool] = None, False
    elif isinstance(offset, int) and offset == 0 and ranges.shape[2] == keys:
        made = None, True
    else:
        return
    ranges._hf_sparsify_ordinary = (ranges.shape[2], keys), made  # type: ignore[attr-defined]


def is_row_ranges(mask: Tensor | None) -> bool:
    """Whether a mask is one that build_mask made of intervals."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.ndim == 4 and mask.shape[-1] == 3


def read_mask(
    mask: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device | str = "cpu"
) -> tuple[Visibility, Tensor | None]:
    """What a mask lets each row see, and the additive part of a float mask (None for the others).

    causal: what the module says of itself; it counts only where there is no mask at all. device: of what is made then.
    """
    if mask is None:
        return unmasked(queries, keys, causal, device), None
    if is_row_ranges(mask):
        if mask.shape[0] > 1 and asking.answers(mask) and bool((mask == mask[:1]).all()):
            mask = mask[:1]
        first, last, counted = mask[:, 0].to(torch.int64).unbind(-1)
        all_count = asking.answers(counted) and bool(counted.all())
        return RowRanges(first, last, None if all_count else counted.bool()), None
    visible, added = visible_and_added(mask, queries, keys)
    return FullMask(visible), added


def unmasked(queries: int, keys: int, causal: bool, device: torch.device | str = "cpu") -> RowRanges:
    """What rows see in a call without a mask."""
    if causal and queries > 1 and queries != keys:
        raise NotPatchableError("a causal attention call with fewer queries than keys came without a mask")
    return (RowRanges.causal if causal and queries > 1 else RowRanges.all_keys)(queries, keys, device)


def visible_and_added(mask: Tensor, queries: int, keys: int) -> tuple[Tensor, Tensor | None]:
    """What an ordinary 4-D mask shows, bool [B or 1, H or 1, queries, keys], and adds (None: nothing), alike."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise NotPatchableError(
            f"an attention mask of type {type(mask).__name__} is not supported: pass a 2-D or 4-D one"
        )
    mask = mask[..., :keys]
    if mask.dtype == torch.bool:
        return mask.expand(-1, -1, queries, keys), None
    if not mask.is_floating_point():
        changed = "; a model whose own code adds to its mask cannot be patched" if mask.dtype == torch.int32 else ""
        raise NotPatchableError(
            f"an attention mask of {mask.dtype} is not supported: pass a boolean or a float one{changed}"
        )
    visible = mask > HIDDEN_BELOW
    return visible.expand(-1, -1, queries, keys), mask.masked_fill(~visible, 0).expand(-1, -1, queries, keys)


def bias_of(
    position_bias: Tensor | None, added: Tensor | None, queries: int, keys: int
) -> Tensor | DistanceBias | None:
    """All that is added to the scores, [B or 1, H or 1, queries, keys] or by distance: a model's position bias and a
    mask's own."""
    bias = read_bias(position_bias, queries, keys)
    if bias is None or added is None:
        return added if bias is None else bias
    return (bias.whole() if isinstance(bias, DistanceBias) else bias) + added


def ordinary_mask(mask: Tensor | None, queries: int, keys: int) -> tuple[Tensor | None, bool | None]:
    """A mask for torch SDPA and its is_causal flag (None: as the module says), for modules that stay dense.

    What a forward pass needs is made once and kept on the mask tensor for the layers that follow.
    """
    if mask is None or not is_row_ranges(mask):
        return mask, None
    if torch.compiler.is_compiling():
        return _spelled_out(mask, keys), False
    made: tuple[Tensor | None, bool]
    sizes, made = getattr(mask, "_hf_sparsify_ordinary", (None, (None, False)))
    if sizes != (queries, keys) or (made[0] is not None and made[0].device != mask.device):
        made = _ordinary(mask, queries, keys)
        mask._hf_sparsify_ordinary = (queries, keys), made  # type: ignore[attr-defined]
    return made


def _ordinary(mask: Tensor, queries: int, keys: int) -> tuple[Tensor | None, bool]:
    first, last = mask[:, :, :, 0:1], mask[:, :, :, 1:2]
    if asking.answers(mask) and bool((first == 0).all()):
        if bool((last == keys).all()):
            return None, False
        steps = torch.arange(1, queries + 1, device=mask.device, dtype=mask.dtype).view(1, 1, -1, 1)
        if queries == keys and bool((last == steps).all()):
            return None, True
    return _spelled_out(mask, keys), False


def _spelled_out(mask: Tensor, keys: int) -> Tensor:
    """Intervals as the boolean mask that they mean, [B, 1, q, keys]."""
    positions = torch.arange(keys, device=mask.device, dtype=mask.dtype)
    return (positions >= mask[:, :, :, 0:1]) & (positions < mask[:, :, :, 1:2])


def added_of(mask: Tensor, scores: Tensor) -> Tensor:
    """What to add to scores [..., q, n] in place of intervals: [B, 1, q, n], like the scores."""
    visible = _spelled_out(mask, scores.shape[-1])
    return torch.zeros_like(visible, dtype=scores.dtype).masked_fill(~visible, torch.finfo(scores.dtype).min)
