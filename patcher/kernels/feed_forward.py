"""The down-projection of kept activations by the native library: what TopKFeedForward.project does in torch, faster."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import dtype_name
from ..methods.top_k_feed_forward import TopKFeedForward
from .arguments import DTYPES
from .library import native
from .weight_rows import weight_rows

NAME = "native"  # of this way through a call, for `paths`

MOST_ACTIVATIONS = 2**31 - 1024  # positions are 32 bits wide


def refusal(hidden: Tensor, rows: Tensor, method: TopKFeedForward) -> str | None:
    """Why a call goes the torch way, in a few words; None if the native library takes it.

    It beats torch for any number of tokens and any share kept (measured up to three quarters).
    hidden: [..., d_ff]. rows: the weight as [d_ff, d_model], however it lies in memory.
    """
    if hidden.device.type != "cpu" or rows.device.type != "cpu":
        return f"on {hidden.device.type}"
    shared = shared_refusal(hidden, rows, method, DTYPES, MOST_ACTIVATIONS)
    if shared is not None:
        return shared
    d_ff, d_model = rows.shape
    if d_model % 8:
        return f"size {d_ff} to {d_model}"
    return "no native library" if native() is None else None


def shared_refusal(
    hidden: Tensor, rows: Tensor, method: TopKFeedForward, dtypes: tuple[torch.dtype, ...], most: int
) -> str | None:
    """What of a call is against any kernel. most: activations of a token."""
    if hidden.dtype != rows.dtype:
        return f"{dtype_name(hidden.dtype)} activations, {dtype_name(rows.dtype)} weights"
    if hidden.dtype not in dtypes:
        return f"stored as {dtype_name(hidden.dtype)}"
    if torch.is_grad_enabled() and (hidden.requires_grad or rows.requires_grad):
        return "gradients"
    if rows.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != rows.shape[0]:
        return "sizes that do not match"
    d_ff, d_model = rows.shape
    if not 0 < d_ff <= most or not d_model:
        return f"size {d_ff} to {d_model}"
    return "all activations kept" if method.width(d_ff) >= d_ff else None


def project_kept(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, is_rows: bool, method: TopKFeedForward, refused: bool
) -> Tensor | None:
    """The down-projection by the rows of what is kept: by the kernel, or gathered in torch where that is `refused`.

    None where it is faster to mask, and to multiply by the whole weight. weight: as the module has it, [d_model, d_ff],
    or [d_ff, d_model] where is_rows.
    """
    if refused and not method.gathers(hidden, weight if is_rows else weight.t()):
        return None
    rows = weight if is_rows else weight_rows(weight)
    if refused:
        return method.project(hidden, rows, bias)
    return project(hidden, rows, bias, method.width(hidden.shape[-1]))


def project(hidden: Tensor, rows: Tensor, bias: Tensor | None, k: int, *, threads: int | None = None) -> Tensor:
    """[..., d_ff] -> [..., d_model] of each token's k activations of largest magnitude, the first among equals.

    For what `refusal` has nothing against, apart from the share kept. A NaN spoils its token's whole output. Sums are
    float32, whatever is stored.
    """
    library, dtype = native(), hidden.dtype
    d_ff, d_model = rows.shape
    if library is None:
        raise ValueError("the native library is not available")
    if hidden.shape[-1] != d_ff or d_model % 8 or d_ff > MOST_ACTIVATIONS:
        raise ValueError(f"activations {tuple(hidden.shape)} and rows {tuple(rows.shape)} do not fit the kernel")
    if dtype != rows.dtype or dtype not in DTYPES:
        raise ValueError(f"{dtype_name(dtype)} activations and {dtype_name(rows.dtype)} rows do not fit the kernel")
    if k < 1 or (threads is not None and threads < 1):
        raise ValueError("k and threads must be at least 1")
    if bias is not None:
        if bias.shape != (d_model,):
            raise ValueError(f"a bias of shape {tuple(bias.shape)} does not fit {d_model} outputs")
        bias = bias.to(dtype).contiguous()
    tokens = hidden if hidden.ndim == 2 else hidden.reshape(-1, d_ff)
    tokens = tokens if tokens.stride(1) == 1 else tokens.contiguous()
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty((*hidden.shape[:-1], d_model), dtype=dtype)
    library.feed_forward(
        len(tokens),
        d_ff,
        d_model,
        dtype == torch.bfloat16,
        tokens.data_ptr(),
        tokens.stride(0),
        rows.data_ptr(),
        rows.stride(0),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        min(k, d_ff),
        threads or torch.get_num_threads(),
    )
    return out
