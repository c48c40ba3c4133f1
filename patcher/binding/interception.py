"""Interception: sparse attention in modules that compute softmax, or call torch's SDPA, themselves.

While such a module's forward runs, a torch function mode sees every torch function that it calls, and replaces the one
that is its attention. The model has computed all scores by then, so nothing gets faster: this is for accuracy alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.hooks import RemovableHandle

from ...errors import NotPatchableError
from ..methods import AttentionInputs, Chunk, FullMask, TopK, TopTheta
from ..methods.clustered import ClusteredPlain
from ..methods.row_chunk import weights_of
from ..methods.rows import count_kept
from ..table_check import check_table
from .attention import ModulePatch, add_rows, attend_patched, counting
from .masks import added_of, is_row_ranges, read_mask
from .modules import ACCURACY_ONLY, alike, head_count

# The functions that compute a softmax, each with the names of its positional arguments.
SOFTMAX: dict[Any, tuple[str, ...]] = {
    torch.softmax: ("input", "dim", "dtype"),
    torch.special.softmax: ("input", "dim", "dtype"),
    torch.Tensor.softmax: ("input", "dim", "dtype"),
    torch.nn.functional.softmax: ("input", "dim", "_stacklevel", "dtype"),
}
SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

# What adds a mask to scores. Beside modules on the interface the mask may be the one that build_mask makes.
ADD = frozenset({torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.add_, torch.Tensor.__iadd__})

# Modules hide a score by -inf, the smallest number of its dtype (also added twice, or divided: CodeGen scales masked
# scores by up to 1/16), or -1e9 and beyond (LongT5). The -10000 of old code would not do as the limit: ALiBi moves
# scores of keys that a row does see as far down as that. In float16 the smallest number leaves no room for both.
HIDDEN = -1e8
HIDDEN_IN_HALF = torch.finfo(torch.float16).min / 20


def intercept(module: nn.Module, patch: ModulePatch) -> list[RemovableHandle]:
    """Makes a module attend as the patch says, until the handles are removed."""
    hooks = InterceptingHooks(patch)
    return [
        module.register_forward_pre_hook(hooks.enter),
        module.register_forward_hook(hooks.leave, prepend=True, always_call=True),
    ]


def leave_interrupted() -> None:
    """Ends what intercepts a call that Ctrl-C has ended: torch calls no hook then."""
    while isinstance(mode := _get_current_function_mode(), Interception):
        mode.__exit__(None, None, None)


def forget_graphs() -> None:
    """To be called after hooks came or went: a compiler does not look for them again in what it has traced."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@dataclass
class InterceptingHooks:
    """The hooks of one module. What they share during a call is the mode itself, of which every thread has its own."""

    patch: ModulePatch

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the forward."""
        leave_interrupted()
        Interception(self.patch, module).__enter__()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the forward, also where it raised and so has no output."""
        mode = _get_current_function_mode()
        if not isinstance(mode, Interception) or mode.patch is not self.patch:
            return
        mode.__exit__(None, None, None)
        if output is not None and mode.replaced is None:
            raise mode.refusal(f"its attention could not be intercepted: {mode.seen()}")


class Interception(TorchFunctionMode):
    """One call of one module. replaced: the function that was its attention, once that was called."""

    def __init__(self, patch: ModulePatch, module: nn.Module) -> None:
        super().__init__()
        self.patch, self.module = patch, module
        self.replaced: str | None = None
        self.passed: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            self._take("scaled_dot_product_attention")
            return self._attention(**dict(zip(SDPA, args, strict=False)), **kwargs)
        if function in SOFTMAX:
            given = dict(zip(SOFTMAX[function], args, strict=False)) | kwargs
            scores, dim = given["input"], given.get("dim")
            if dim in (-1, scores.ndim - 1) and given.get("out") is None:
                self._take("softmax")
                return self._softmax(scores, given.get("dtype") or scores.dtype)
            self.passed.append(f"softmax over dimension {dim}")
        if function in ADD and len(args) == 2 and is_row_ranges(args[1]):
            args = (args[0], added_of(args[1], args[0]))
        return function(*args, **kwargs)

    def refusal(self, reason: str) -> NotPatchableError:
        """The error that names the module, and how to leave it and its likes in other layers dense."""
        name = self.patch.name
        way_out = f"--set '{alike(name)}=none' leaves it dense"
        return NotPatchableError(f"{name} ({type(self.module).__name__}) cannot be patched: {reason}; {way_out}")

    def seen(self) -> str:
        """Of a call in which nothing was replaced."""
        beside = f", but {', '.join(self.passed)}" if self.passed else ""
        return f"it calls neither softmax over the last dimension nor scaled_dot_product_attention{beside}"

    def _take(self, name: str) -> None:
        if self.replaced is not None:
            raise self.refusal(f"it calls {self.replaced} and then {name}, and which is its attention is not clear")
        self.replaced = name

    def _softmax(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights for masked scores, shaped like these, in dtype."""
        method = self.patch.method
        if isinstance(method, ClusteredPlain):
            raise self.refusal(
                f"{method.name} attention needs queries and keys, and it hands over their scores: choose top-k"
            )
        if method.denominator == "rounded":
            raise self.refusal("the rounded denominator needs keys, and it hands over its scores: choose exact")
        weights = sparse_softmax(self.patch, method, self._by_head(scores), self._limit(scores))
        return weights.reshape(scores.shape).to(dtype)

    def _by_head(self, scores: Tensor) -> Tensor:
        """[..., H, q, n] or [B * H, q, n] as [B, H, q, n]."""
        heads = head_count(self.module)
        if scores.ndim >= 4 and heads in (None, scores.shape[-3]):
            return scores.flatten(0, -4)
        if scores.ndim == 3 and heads is not None and scores.shape[0] % heads == 0:
            return scores.unflatten(0, (-1, heads))
        shape = " x ".join(map(str, scores.shape))
        counted = f"its {heads} heads" if heads else "its heads"
        raise self.refusal(f"which dimension of its scores ({shape}) counts {counted} is not clear")

    def _limit(self, scores: Tensor) -> float:
        """Scores up to this one are hidden. A model in float16 may add a mask of that dtype to scores in float32."""
        weights = next((parameter.dtype for parameter in self.module.parameters()), None)
        return HIDDEN_IN_HALF if torch.float16 in (scores.dtype, weights) else HIDDEN

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention [B, H, q, E] from the arguments of torch's SDPA."""
        shapes = {query.ndim, key.ndim, value.ndim}
        if shapes != {4} or query.shape[0] != key.shape[0] or query.shape[1] % key.shape[1]:
            given = ", ".join(" x ".join(map(str, tensor.shape)) for tensor in (query, key, value))
            raise self.refusal(f"its queries, keys and values ({given}) are not batch x heads x positions x width")
        queries, keys = query.shape[2], key.shape[2]
        if is_causal and queries != keys:
            raise self.refusal(f"its attention is causal, but {queries} queries meet {keys} keys")
        while attn_mask is not None and attn_mask.ndim < 4:
            attn_mask = attn_mask.unsqueeze(0)
        visibility, added = read_mask(attn_mask, queries, keys, is_causal, query.device)
        inputs = AttentionInputs(
            query=query,
            key=key,
            value=value,
            visibility=visibility.to(query.device),
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            bias=added,
            dropout=dropout_p,
        )
        return _attend(self.patch, inputs)


# A compiler that traces a patched model leaves its graph here: what follows looks at its data.


@torch.compiler.disable
def _attend(patch: ModulePatch, inputs: AttentionInputs) -> Tensor:
    return attend_patched(patch, inputs)


@torch.compiler.disable
def sparse_softmax(patch: ModulePatch, method: TopK | TopTheta, scores: Tensor, limit: float) -> Tensor:
    """Weights [B, H, q, n] of scores alike; those up to limit are hidden. Counted and observed."""
    patch.calls += 1
    patch.paths[ACCURACY_ONLY] += 1
    hidden = scores <= limit
    masked = torch.where(hidden, -torch.inf, scores.to(torch.promote_types(scores.dtype, torch.float32)))
    visibility = counting(patch.kind, FullMask(~hidden))
    queries, keys = scores.shape[2:]
    chunk = Chunk(masked, visibility.lengths(), visibility, 0, queries, 0, keys)
    if patch.thresholds is not None:
        check_table(patch.name, method, patch.thresholds, chunk, patch.told)
    if patch.observer is not None:
        patch.observer(chunk)
    selection = method.select(chunk, patch.thresholds)
    if patch.meter is not None:
        add_rows(patch.meter, patch.name, method, count_kept(chunk, selection, groups=None), visibility)
    return weights_of(chunk, selection, method.compensation, method.v_mean)
