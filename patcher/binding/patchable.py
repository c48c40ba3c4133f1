"""What a plan may name in a model, and whether a module can take a method."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from torch import nn

from ...errors import NotPatchableError, RecipeMismatchError, UsageError
from ..methods import METHODS, Method, TopKFeedForward, TopTheta
from ..methods.budget import Budget
from ..methods.clustered import ClusteredPlain
from ..thresholds import ModuleThresholds
from .feed_forward import FeedForwardModule, feed_forward_modules, require_feed_forward_modules
from .modules import INTERCEPTION, AttentionModule, attention_modules, mentions, require_attention_modules

Plan = Mapping[str, Method]
PatchableModule = AttentionModule | FeedForwardModule


def patchable_modules(model: nn.Module, plan: Plan) -> dict[str, PatchableModule]:
    """The modules of a model that any method can patch, by name.

    NotPatchableError if the plan has a method for a kind of module of which the model has none that can be patched.
    """
    wants_feed_forward = any(isinstance(method, TopKFeedForward) for method in plan.values())
    wants_attention = any(not isinstance(method, TopKFeedForward) for method in plan.values())
    found: list[PatchableModule] = []
    found += (require_attention_modules if wants_attention else attention_modules)(model)
    found += (require_feed_forward_modules if wants_feed_forward else feed_forward_modules)(model)
    return {target.name: target for target in found}


def check_name(name: str, found: Mapping[str, PatchableModule]) -> None:
    """RecipeMismatchError if there is no such module, with what may have been meant."""
    if name not in found:
        close = get_close_matches(name, found, n=1)
        hint = f" (is {close[0]} meant?)" if close else ": the recipe is for another model"
        raise RecipeMismatchError(f"the model has no module {name} that can be patched{hint}")


def check_module(target: PatchableModule, method: Method, table: ModuleThresholds | None = None) -> None:
    """UsageError for what is no method, NotPatchableError or RecipeMismatchError if a module cannot take a method or a
    threshold table."""
    if not isinstance(method, tuple(METHODS.values())):
        raise UsageError(f"{method!r} is no method: give an object such as hf_sparsify.TopK(k=64)")
    if isinstance(target, FeedForwardModule) != isinstance(method, TopKFeedForward):
        what = "a feed-forward layer" if isinstance(target, FeedForwardModule) else "attention"
        raise NotPatchableError(f"{target.name} is {what}, which {method.name} is not for")
    if not isinstance(target, AttentionModule):
        return
    if isinstance(method, ClusteredPlain) and target.nature != "bidirectional":
        later = target.causal or target.kind == "cross"
        raise NotPatchableError(
            f"{method.name} attention is for bidirectional self-attention only, and {target.name} is "
            f"{target.nature}, where {'later queries would move earlier rows' if later else 'rows see unlike keys'}: "
            "leave it out (--stack encoder selects an encoder alone), or choose top-k"
        )
    scores_alone = target.route == INTERCEPTION and not mentions(type(target.module), {"scaled_dot_product_attention"})
    if isinstance(method, ClusteredPlain) and scores_alone:
        raise NotPatchableError(
            f"{method.name} attention needs queries and keys, and {target.name} ({type(target.module).__name__}) is "
            "intercepted where it has scores alone: leave it out, or choose top-k"
        )
    if isinstance(method, Budget) and method.protect_recent and not target.causal:
        raise NotPatchableError(
            f"recent keys can be protected in causal self-attention only, and {target.name} is {target.nature}: "
            "leave it out or protect none"
        )
    if table is not None:
        _check_table(target, method, table)


def _check_table(target: AttentionModule, method: Method, table: ModuleThresholds) -> None:
    """RecipeMismatchError if thresholds were fitted for another kind of scores than the module has; the factor on the
    scores is compared when the module is called, as some hand over another than they name."""
    again = "calibrate anew with `sparsify calibrate`"
    if target.heads is not None and table.heads != target.heads:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.heads} heads, the module has {target.heads}"
        )
    if isinstance(method, TopTheta) and method.placement != table.placement:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.placement} placement, the plan asks for "
            f"{method.placement}: {again}"
        )
    if isinstance(method, TopTheta) and method.denominator == "offline" and table.dropped is None:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} hold no offline denominator, which the plan asks for: {again}"
        )
    if table.nature is not None and table.nature != target.nature:
        raise RecipeMismatchError(
            f"the thresholds of {target.name} are for {table.nature}, the module is {target.nature}: {again}"
        )
