"""The one attention function that is registered with transformers; what it does is decided per module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...errors import NotPatchableError, UnsupportedAttentionArgument
from ..kernels import kernel_of
from ..kernels.operator import call_text
from ..meter import Meter
from ..methods import AttentionInputs, AttentionMethod, RowCounts, attend_rows
from ..methods.budget import Budget
from ..methods.chunk import Observer
from ..methods.clustered import ClusterCounts
from ..methods.rounded_keys import rounded_bytes
from ..methods.visibility import FullMask, Visibility
from ..table_check import check_table
from ..thresholds import ModuleThresholds
from .carried import Carried
from .distances import is_long, spelled_out
from .in_graph import AttentionCall, attend_in_graph, leaves_graph
from .masks import bias_of, build_mask, ordinary_mask, read_mask
from .modules import ACCURACY_ONLY

# transformers reads meaning into "sdpa", "flash", "flex_attention", "paged|" and "/" inside a name: none of them here.
ATTENTION_NAME = "hf_sparsify"

# The attribute of an attention module that holds its ModulePatch.
PATCH_ATTRIBUTE = "_hf_sparsify_patch"

# Arguments that change nothing about which scores a row has, or that the mask already says.
HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "encoder_hidden_states",
        "logits_to_keep",
        "num_items_in_batch",  # what Trainer divides the loss by
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)


@dataclass
class ModulePatch:
    """What one attention module does while its model is patched. kind: "self" or "cross".

    told: the warnings that the patch has given, shared by all modules of the model so that each is said once.
    carried: where the method has a use for it. paths: how many calls took which way: "native", "native, 8-bit first",
    "torch: " and why, "dense: " and why, or ACCURACY_ONLY. text: what a compiled graph holds of this patch (see
    call_text); calls inside the graph are not counted. intercepted: whether the module's own softmax or SDPA is
    replaced. watcher: sees what attention gives for each head, [B, H, q, E]; not where scores alone are intercepted,
    nor in a compiled graph.
    """

    name: str
    kind: str
    method: AttentionMethod
    thresholds: ModuleThresholds | None = None
    told: set[str] = field(default_factory=set, repr=False)
    carried: Carried | None = field(default=None, repr=False)
    observer: Observer | None = None
    watcher: Callable[[Tensor], None] | None = None
    meter: Meter | None = None
    calls: int = 0
    paths: Counter[str] = field(default_factory=Counter, repr=False)
    intercepted: bool = False
    text: str | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.text = call_text(self.name, self.method, self.thresholds)


def register() -> None:
    """Makes the function and its mask builder known to transformers. Safe to repeat; harmless to unpatched models.

    Both are needed: without the builder transformers would silently pass no mask, and causality and padding were lost.
    """
    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, build_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The transformers attention contract: query [B, H, q, D], key and value [B, G, n, D] -> ([B, q, H, D], None).

    Raises UnsupportedAttentionArgument for an argument that is set and not known here.
    """
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in HARMLESS)
    patch: ModulePatch | None = getattr(module, PATCH_ATTRIBUTE, None)
    if unknown:
        where = patch.name if patch is not None else type(module).__name__
        raise UnsupportedAttentionArgument(
            f"{where} hands its attention function {', '.join(unknown)}, which sparse attention does not know: "
            "this model cannot be patched"
        )
    if is_causal is None:
        # Modules without the attribute (Splinter, MarkupLM ...) are bidirectional.
        is_causal = bool(getattr(module, "is_causal", False))
    dense = softcap is None and s_aux is None and (patch is None or _stays_dense(patch, key.shape[2]))
    if dense and not is_long(position_bias, query, key):
        mask, causal = ordinary_mask(attention_mask, query.shape[2], key.shape[2])
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal if causal is None else causal,
            position_bias=spelled_out(position_bias, query.shape[2], key.shape[2]),
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    acting = None if dense else patch
    call = AttentionCall(acting, query, key, value, attention_mask, position_bias, s_aux, is_causal, scale, softcap)
    if not torch.compiler.is_compiling():
        return _attend_call(call, dropout), None
    if leaves_graph(call, dropout):
        return _outside_graphs(call, dropout), None
    return attend_in_graph(call), None


@torch.compiler.disable
def _outside_graphs(call: AttentionCall, dropout: float) -> Tensor:
    return _attend_call(call, dropout)


def _attend_call(call: AttentionCall, dropout: float) -> Tensor:
    """Attention [B, q, H, E], contiguous."""
    query, key, patch = call.query, call.key, call.patch
    visibility, added = read_mask(call.mask, query.shape[2], key.shape[2], call.causal, query.device)
    inputs = AttentionInputs(
        query=query,
        key=key,
        value=call.value,
        visibility=visibility.to(query.device),
        scale=call.scale,
        bias=bias_of(call.position_bias, added, query.shape[2], key.shape[2]),
        softcap=call.softcap,
        sinks=call.sinks,
        dropout=dropout,
    )
    out = attend_rows(inputs)[0] if patch is None else attend_patched(patch, inputs)
    return out.transpose(1, 2).contiguous()


def _stays_dense(patch: ModulePatch, keys: int) -> bool:
    """Whether every row of a call is too short for its method, and nobody counts or observes rows; counts the call.

    A compiled graph asks the method instead, which keeps all in such rows: it should not depend on the length."""
    shortest = patch.method.min_length if isinstance(patch.method, Budget) else 0
    if torch.compiler.is_compiling() or keys >= shortest or patch.meter is not None or patch.observer is not None:
        return False
    patch.calls += 1
    patch.paths[f"dense: fewer than {shortest} keys"] += 1
    return True


def attend_patched(patch: ModulePatch, inputs: AttentionInputs) -> Tensor:
    """Sparse attention [B, H, q, E] as the patch says, counted and observed."""
    patch.calls += 1
    if patch.thresholds is not None:
        check_table(patch.name, patch.method, patch.thresholds, inputs, patch.told)
    if patch.meter is not None or patch.observer is not None:
        inputs = replace(inputs, visibility=counting(patch.kind, inputs.visibility))
    if patch.carried is not None and not torch.is_grad_enabled() and not inputs.dropout:
        inputs = patch.carried.with_carried(inputs)
    out, counts = _run(patch, inputs)
    if patch.watcher is not None:
        patch.watcher(out)
    if patch.meter is None or counts is None:
        return out
    if isinstance(counts, ClusterCounts):
        patch.meter.add_clusters(patch.name, counts)
    elif isinstance(patch.method, Budget):
        row_bytes = (
            inputs.key.element_size() * inputs.key.shape[3],
            inputs.value.element_size() * inputs.value.shape[3],
            rounded_bytes(inputs.key.shape[3]),
        )
        add_rows(patch.meter, patch.name, patch.method, counts, inputs.visibility, row_bytes)
    return out


def add_rows(
    meter: Meter,
    name: str,
    method: Budget,
    counts: RowCounts,
    visibility: Visibility,
    row_bytes: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Adds one call of module `name` to a meter. row_bytes: of a K row, a V row and a rounded key."""
    lengths = visibility.lengths()
    meter.add(name, counts, lengths, method.rows_k(lengths), visibility.counted, row_bytes)


def _run(patch: ModulePatch, inputs: AttentionInputs) -> tuple[Tensor, Any]:
    """The method's output and counts, by its native kernel where that takes the call."""
    method, count = patch.method, patch.meter is not None
    kernel = kernel_of(method, inputs.query.device.type)
    if kernel is None:
        refusal = "no kernel for this method"
    elif count and patch.meter.last_rows_are_steps and inputs.query.shape[2] > 1:  # type: ignore[union-attr]
        refusal = "counting V rows of many queries"
    else:
        refusal = kernel.refusal(inputs, method, patch.observer)
    counts: Any
    try:
        if kernel is not None and refusal is None:
            out, counts = kernel.attend(inputs, method, patch.thresholds, count=count)
            staged = inputs.rounded is not None and inputs.rounded.used
            way = f"{kernel.NAME}, 8-bit first" if staged else kernel.NAME
        else:
            out, counts = method.attend(inputs, thresholds=patch.thresholds, count=count, observer=patch.observer)
            way = f"torch: {refusal}"
    except NotPatchableError as error:
        raise NotPatchableError(f"{patch.name}: {error}") from None
    patch.paths[ACCURACY_ONLY if patch.intercepted else way] += 1
    return out, counts


def counting(kind: str, visibility: Visibility) -> Visibility:
    """The same visibility with what it says of padding queries made right for the kind of module."""
    if kind == "cross":
        # The builder compares query positions with key positions, which means nothing across two sequences.
        return replace(visibility, counted=None)
    if isinstance(visibility, FullMask) and visibility.visible.shape[-1] == visibility.visible.shape[-2]:
        # Nobody looks at padding, so a token that no row sees is padding.
        return replace(visibility, counted=visibility.visible.any(1).any(1))
    return visibility
