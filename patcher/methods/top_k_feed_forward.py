"""Top-k feed-forward: per token keep the k activations of the largest magnitude before the down-projection.

Gupta, Dar, Goodman, Ciprut, Berant: Memory-efficient Transformers via Top-k Attention, 2021 (arXiv 2106.06899), where a
feed-forward layer is read as attention of tokens over its d_ff inner units. Here magnitude decides, so that gated
layers and activations that go below zero work too; for ReLU it is the same choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from . import asking
from .budget import Kept, exact_share
from .top_k import keep_highest

# Reading k rows per token from a transposed copy of the weight beats the dense product on a CPU up to about here.
GATHER_TOKENS = 4
GATHER_SHARE = 8  # at most one activation in so many kept


class ActivationCounts(NamedTuple):
    """Inner activations of all tokens, and those that were kept."""

    all: int
    kept: int


@dataclass(frozen=True)
class TopKFeedForward(Kept):
    """Keeps k of d_ff inner activations per token, or the fraction `keep` (see Kept).

    Exact wherever no more than k activations differ from zero, as is common after ReLU.
    """

    name: ClassVar[str] = "top-k-feed-forward"
    summary: ClassVar[str] = "keeps the k largest activations of every token before the down-projection"
    paper: ClassVar[str] = "Gupta et al. 2021, arXiv 2106.06899"
    needs_thresholds: ClassVar[bool] = False

    def width(self, d_ff: int) -> int:
        """Activations kept of d_ff."""
        kept = self.k if self.k is not None else max(1, math.ceil(exact_share(self.keep) * d_ff))
        return min(kept, d_ff)

    def mask(self, hidden: Tensor) -> Tensor:
        """Activations [..., d_ff] -> the same with zeros for all but the kept ones; among equals the first are kept."""
        kept = self.width(hidden.shape[-1])
        if kept == hidden.shape[-1] or not hidden.numel():
            return hidden
        return hidden.masked_fill(~keep_largest(hidden, kept), 0)

    def gathers(self, hidden: Tensor, rows: Tensor) -> bool:
        """Whether `project` takes activations [..., d_ff] and a weight [d_ff, d_model], wherever its elements lie, and
        beats the product with what `mask` gives. It has no gradients."""
        width = hidden.shape[-1]
        return (
            0 < hidden.numel() <= GATHER_TOKENS * width
            and hidden.device.type == rows.device.type == "cpu"
            and hidden.dtype == rows.dtype
            and width == rows.shape[0]
            and not (torch.is_grad_enabled() and (hidden.requires_grad or rows.requires_grad))
            and self.width(width) * GATHER_SHARE <= width
        )

    def project(self, hidden: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        """The down-projection of the kept activations alone: [..., d_ff] -> [..., d_model], reading k rows per token.

        rows: the weight as [d_ff, d_model], contiguous. The result is that of mask, up to the order of the sum.
        """
        tokens = hidden.reshape(-1, hidden.shape[-1])
        kept = largest(tokens, self.width(tokens.shape[-1]))
        out = torch.nn.functional.embedding_bag(
            kept, rows, per_sample_weights=tokens.gather(-1, kept).to(rows.dtype), mode="sum"
        )
        if bias is not None:
            out = out + bias
        return out.view(*hidden.shape[:-1], -1)


def keep_largest(hidden: Tensor, k: int) -> Tensor:
    """bool [..., d_ff], True for exactly k per token: the largest magnitudes, among equals the first."""
    tokens = hidden.detach().reshape(1, 1, -1, hidden.shape[-1])
    rows_k = torch.full((1, 1, tokens.shape[2]), k, device=hidden.device)
    return keep_highest(tokens.abs(), rows_k, most=k).view(hidden.shape)


def largest(tokens: Tensor, k: int, *, zeros: bool = False) -> Tensor:
    """The indices int64 [T, k] of what keep_largest keeps of [T, d_ff], in any order.

    zeros: whether it matters which of several zeros are kept; if not, any may be.
    """
    if not asking.answers(tokens):
        sizes = tokens.detach().abs()
        return sizes.masked_fill(sizes.isnan(), torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    values, indices = tokens.detach().abs().topk(min(k + 1, tokens.shape[-1]), dim=-1)
    if k >= tokens.shape[-1]:
        return indices
    # topk picks any among equals; where the last kept one equals the next, the rule decides.
    last, following = values[:, k - 1], values[:, k]
    tied = (last == following) & (zeros or following > 0)
    indices = indices[:, :k]
    if rows := tied.nonzero()[:, 0].tolist():
        indices = indices.clone()
        indices[rows] = keep_largest(tokens[rows], k).nonzero()[:, 1].view(-1, k)
    return indices
