"""Shows on the loaded model that a patch does what it says, before anything is written.

Random tokens, images or sound are enough: what is checked is whether masks, padding, caches and undoing work, not
quality. Sparse checks run at a small k, so that selection is at work on short inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NotPatchableError
from .binding.attention import PATCH_ATTRIBUTE
from .binding.growing_cache import cache_argument, cache_in
from .binding.modules import input_device
from .binding.patching import Patch, apply_plan, remove_patch
from .methods import Method, TopK, TopTheta
from .outputs import features, finite_outputs
from .random_inputs import other_inputs, takes_text
from .thresholds import ModuleThresholds

LENGTH = 48
SHORTER = 37
DECODED = 6
SMALL_K = 8

# Largest difference relative to the largest output. Rounding accumulates over layers; a lost mask comes near 1.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}

Plan = Mapping[str, Method]


@dataclass(frozen=True)
class Check:
    """One thing that was shown, or not. error: the measured relative difference, None where there is no number."""

    name: str
    passed: bool
    error: float | None = None
    modules: tuple[str, ...] = ()


class ProofFailedError(NotPatchableError):
    """A check failed; `checks` holds those that were run, the failed one last."""

    def __init__(self, checks: list[Check]) -> None:
        failed = checks[-1]
        by = f" (off by {failed.error:.2g} of the largest output)" if failed.error is not None else ""
        where = ", ".join(failed.modules) or "all planned modules together"
        super().__init__(
            f"the patch is not sound on this model: {failed.name}: failed for {where}{by}; nothing was written"
        )
        self.checks = checks


def prove(model: Any, plan: Plan, thresholds: Mapping[str, ModuleThresholds] | None, task: str) -> list[Check]:
    """Runs every check that applies to the task; the model must not be patched and is left as it was.

    Raises ProofFailedError that names the module to blame, NotPatchableError for a model whose inputs are not known,
    SparsifyError for one that is not finite itself.
    """
    checks: list[Check] = []
    with torch.inference_mode():
        for check in _Prover(model, plan, dict(thresholds or {}), task).checks():
            checks.append(check)
            if not check.passed:
                raise ProofFailedError(checks)
    return checks


class _Prover:
    def __init__(self, model: Any, plan: Plan, thresholds: dict[str, ModuleThresholds], task: str) -> None:
        self.model, self.plan, self.thresholds = model, plan, thresholds
        self.encoder_decoder = task in ("seq2seq-lm", "speech-seq2seq")
        self.causal = task == "causal-lm"
        self.classifies = task == "text-classification"
        self.arguments = inspect.signature(model.forward).parameters
        if takes_text(model) and "input_ids" not in self.arguments:
            raise NotPatchableError(
                f"{type(model).__name__} takes no input_ids, so the patch cannot be verified on it: use --no-verify"
            )
        self.others = {
            name: value.to(input_device(model)) for name, value in other_inputs(model, self.arguments).items()
        }
        self.tolerance = TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
        limit = getattr(model.config, "max_position_embeddings", None)
        self.length = min(LENGTH, limit) if limit is not None and limit > 0 else LENGTH  # -1: as many as one likes
        self.shorter = min(SHORTER, self.length - 2)
        self.tokens = self._random_tokens(2, self.length)
        self.targets = self._random_tokens(2, self.length // 2)

    def _random_tokens(self, batch: int, length: int) -> Tensor:
        """int64 [batch, length] without special tokens; from a generator of its own. Zeros without a vocabulary."""
        config = self.model.config.get_text_config()
        special: set[int | None] = set()
        for name in ("pad", "bos", "eos", "decoder_start"):
            token = getattr(config, f"{name}_token_id", None)
            special |= set(token) if isinstance(token, list | tuple) else {token}
        words = getattr(config, "vocab_size", None) or 1
        ordinary = torch.tensor([token for token in range(words) if token not in special] or [0])
        generator = torch.Generator().manual_seed(length)
        return ordinary[torch.randint(len(ordinary), (batch, length), generator=generator)].to(input_device(self.model))

    @contextmanager
    def patched(self, plan: Plan) -> Any:
        tables = {name: table for name, table in self.thresholds.items() if name in plan}
        patch: Patch = apply_plan(self.model, plan, tables)
        for module in patch.attention_patches:
            module.told.add("outside")  # short random tokens say nothing about the range that was calibrated
        try:
            yield patch
        finally:
            remove_patch(self.model)

    def run(self, tokens: Tensor, mask: Tensor | None = None, targets: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The output [B, n, features] of a full forward pass."""
        inputs = self.source(tokens)
        if takes_text(self.model):
            inputs["attention_mask"] = torch.ones_like(tokens) if mask is None else mask
        if self.encoder_decoder:
            inputs["decoder_input_ids"] = self.targets[: len(tokens)] if targets is None else targets
        elif mask is not None and self.causal and "position_ids" in self.arguments:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return features(self.model(**inputs, **kwargs))

    def source(self, tokens: Tensor) -> dict[str, Any]:
        """What the model reads: tokens, or an image or sound beside them or in their place."""
        return {"input_ids": tokens, **self.others} if takes_text(self.model) else dict(self.others)

    def checks(self) -> Iterator[Check]:
        """One after the other, because what follows a failed check means nothing."""
        settings = _settings(self.model)
        with finite_outputs(self.model):
            before = self.run(self.tokens[:1])
        yield self.called()
        restored = _settings(self.model) == settings and torch.equal(self.run(self.tokens[:1]), before)
        yield Check("unpatching restores the dense model to the bit", restored)
        yield self.blame("keeping all equals the dense model", self.dense_error)
        if not self.others:
            yield self.blame("padding and batching do not matter", self.padding_error)
        if self.causal or self.encoder_decoder:
            yield self.blame("the future does not matter", self.future_error)
        if (self.causal or self.encoder_decoder) and self.has_cache():
            yield self.blame("cached decoding equals the full forward pass", self.cache_error)

    def called(self) -> Check:
        with self.patched(_dense(self.plan)) as patch:
            self.run(self.tokens[:1])
            silent = tuple(module.name for module in patch.module_patches if not module.calls)
        return Check("every planned module is called", not silent, modules=silent[:3])

    def blame(self, name: str, measure: Callable[[Plan], float]) -> Check:
        """A check of the whole plan; if it fails, the modules that fail it alone."""
        error = measure(self.plan)
        if error <= self.tolerance:
            return Check(name, True, error)
        alone = (module for module in self.plan if measure({module: self.plan[module]}) > self.tolerance)
        return Check(name, False, error, tuple(module for module, _ in zip(alone, range(3), strict=False)))

    def dense_error(self, plan: Plan) -> float:
        dense = self.run(self.tokens[:1])
        with self.patched(_dense(plan)):
            return _difference(self.run(self.tokens[:1]), dense)

    def padding_error(self, plan: Plan) -> float:
        """A short sequence alone against itself padded, on either side, beside a longer one."""
        short = self.tokens[1:, : self.shorter]
        pad = self.length - self.shorter
        filler = self.tokens[1:, :pad]
        pad_token = getattr(self.model.config, "pad_token_id", None)
        if self.classifies and pad_token is not None:
            filler = torch.full_like(filler, pad_token)  # a decoder's head looks for the last other token
        targets = self.targets[1:]
        with self.patched(_small(plan)):
            alone = self.run(short, targets=targets)
            errors = []
            for left in (False, True) if self.causal else (False,):
                row = torch.cat([filler, short] if left else [short, filler], 1)
                mask = torch.ones_like(self.tokens)
                mask[1, slice(0, pad) if left else slice(self.shorter, None)] = 0
                batch = self.run(torch.cat([self.tokens[:1], row]), mask)[1:]
                if not (self.encoder_decoder or self.classifies):
                    batch = batch[:, pad:] if left else batch[:, : self.shorter]
                errors.append(_typical_difference(batch, alone))
        return max(errors)

    def future_error(self, plan: Plan) -> float:
        """Earlier outputs while later tokens change."""
        ids = self.targets[:1] if self.encoder_decoder else self.tokens[:1]
        half = ids.shape[1] // 2
        changed = ids.clone()
        changed[:, half:] = ids[:, half:].flip(1)
        with self.patched(_small(plan)):
            if self.encoder_decoder:
                first = self.run(self.tokens[:1], targets=ids)
                second = self.run(self.tokens[:1], targets=changed)
            else:
                first, second = self.run(ids), self.run(changed)
        return _difference(second[:, :half], first[:, :half])

    def has_cache(self) -> bool:
        """Whether the model decodes with a KV cache at all."""
        inputs = self.source(self.tokens[:1])
        if self.encoder_decoder:
            inputs["decoder_input_ids"] = self.targets[:1]
        return cache_in(self.model(**inputs, use_cache=True)) is not None

    def cache_error(self, plan: Plan) -> float:
        """The last tokens one by one through a KV cache, against one pass over all of them."""
        ids = self.targets[:1] if self.encoder_decoder else self.tokens[:1]
        key = "decoder_input_ids" if self.encoder_decoder else "input_ids"
        with self.patched(_small(plan)):
            full = self.run(self.tokens[:1])
            fixed: dict[str, Any] = {}
            if self.encoder_decoder:
                fixed["encoder_outputs"] = self.model.get_encoder()(**self.source(self.tokens[:1]))
            step = self.model(**{key: ids[:, :-DECODED]}, use_cache=True, **fixed)
            outputs = []
            for position in range(ids.shape[1] - DECODED, ids.shape[1]):
                token = ids[:, position : position + 1]
                carried = {cache_argument(self.model): cache_in(step)}
                step = self.model(**{key: token}, use_cache=True, **carried, **fixed)
                outputs.append(features(step))
        return _typical_difference(torch.cat(outputs, 1), full[:, -DECODED:])


def _dense(plan: Plan) -> dict[str, Method]:
    return {name: method.as_dense() for name, method in plan.items()}


def _small(plan: Plan) -> dict[str, Method]:
    return {name: _exact(method.as_small(SMALL_K)) for name, method in plan.items()}


def _exact(method: Method) -> Method:
    """The same with the denominator that prompts have: with a rounded one a step is near the full pass, not equal."""
    if isinstance(method, TopK | TopTheta) and method.denominator == "rounded":
        return replace(method, denominator="exact")
    return method


def _settings(model: Any) -> list[tuple[Any, bool, int]]:
    """What a patch changes: the attention implementation that each module reads, whether something stands in for the
    module's own behaviour, and its hooks."""
    return [
        (
            getattr(getattr(module, "config", None), "_attn_implementation_internal", None),
            hasattr(module, PATCH_ATTRIBUTE) or "forward" in vars(module),
            len(module._forward_pre_hooks) + len(module._forward_hooks),
        )
        for module in model.modules()
    ]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite if something is not finite."""
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def _typical_difference(found: Tensor, expected: Tensor) -> float:
    """As _difference, for the median position: rounding may flip a near tie of the selection here and there, while a
    lost mask moves every position."""
    error = (found - expected).abs().amax(-1).median() / expected.abs().max().clamp(min=1e-6)
    return float(error) if bool(torch.isfinite(error)) else float("inf")
