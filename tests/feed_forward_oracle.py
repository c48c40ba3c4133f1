"""The down-projection of kept activations as it is defined, in float64, and random calls of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from hf_sparsify.patcher.methods.top_k_feed_forward import keep_largest
from hypothesis import strategies as st
from torch import Tensor

LEVELS = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def exact(hidden: Tensor, rows: Tensor, bias: Tensor | None, k: int) -> Tensor:
    """The definition, in float64: NaN for a token with a NaN, and zeros do not meet a weight."""
    tokens = hidden.double().reshape(-1, hidden.shape[-1])
    out = torch.zeros(len(tokens), rows.shape[1], dtype=torch.float64)
    for token, row in zip(tokens, out, strict=True):
        row += math.nan if bool(token.isnan().any()) else 0 if bias is None else bias.double()
        kept = keep_largest(token, min(k, len(token))) & (token != 0)
        row += (token[kept, None] * rows[kept].double()).sum(0)
    return out.view(*hidden.shape[:-1], rows.shape[1])


def assert_exact(
    out: Tensor, hidden: Tensor, rows: Tensor, bias: Tensor | None, k: int, *, truncated: bool = False
) -> None:
    """out is the down-projection of hidden [..., d_ff] by rows [d_ff, d_model], to rounding; truncated: towards 0."""
    expected = exact(hidden, rows, bias, k)
    assert out.dtype == hidden.dtype
    assert out.shape == expected.shape
    scale = float(expected[expected.isfinite()].abs().amax()) if bool(expected.isfinite().any()) else 1.0
    rtol, atol = TOLERANCE[out.dtype] * (1 + truncated), 1e-6 * max(scale, 1)
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=atol, equal_nan=True)


class Call(NamedTuple):
    hidden: Tensor
    rows: Tensor
    bias: Tensor | None
    k: int
    threads: int


@st.composite
def calls(draw: st.DrawFn, tokens: tuple[int, ...], d_ff: tuple[int, ...], dtypes: list[torch.dtype]) -> Call:
    """d_model is a multiple of 8; k may be above d_ff."""
    count, width = draw(st.sampled_from(tokens)), draw(st.sampled_from(d_ff))
    d_model = 8 * draw(st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 36]))
    k = draw(st.sampled_from([1, 2, 3, width // 16 + 1, width // 2 + 1, width, width + 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    wide = torch.randn(count, width + 5, generator=generator)
    kind = draw(st.sampled_from(["normal", "relu", "levels", "sparse", "one value", "tiny", "huge"]))
    dtype = draw(st.sampled_from(dtypes))
    if kind == "relu":
        wide = wide.relu()
    elif kind == "levels":
        wide = torch.tensor(LEVELS)[torch.randint(len(LEVELS), wide.shape, generator=generator)]
    elif kind == "sparse":
        wide = wide * (torch.rand(wide.shape, generator=generator) < 0.02)
    elif kind == "one value":
        wide = torch.full_like(wide, -1.5)
    elif kind == "tiny":
        wide = wide * (1e-7 if dtype is torch.float16 else 1e-41)
    elif kind == "huge":
        wide = wide * (1e3 if dtype is torch.float16 else 1e30)
    hidden = wide.to(dtype)[:, 3 : 3 + width] if draw(st.booleans()) else wide[:, :width].to(dtype).contiguous()
    rows = (torch.randn(width, d_model, generator=generator) / math.sqrt(k)).to(dtype)
    bias = torch.randn(d_model, generator=generator).to(dtype) if draw(st.booleans()) else None
    return Call(hidden, rows, bias, k, draw(st.sampled_from([1, 2, 3, 7])))
