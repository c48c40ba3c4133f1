"""Shows on the loaded model that a patch does what it says, before anything is written.

Random tokens, images or sound are enough: what is checked is whether masks, padding, caches and undoing work, not
quality. Sparse checks run at a small k, so that selection is at work on short inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NotPatchableError, SparsifyError
from .binding.attention import PATCH_ATTRIBUTE
from .binding.growing_cache import cache_argument, cache_in
from .binding.modules import input_device
from .binding.patching import Patch, apply_plan, remove_patch
from .checks import Check, ProofFailedError
from .differences import TOLERANCE, difference, typical_difference
from .methods import Method, TopK, TopTheta
from .outputs import features, finite_outputs
from .random_inputs import other_inputs, random_tokens, takes_text
from .thresholds import ModuleThresholds

LENGTH = 48
SHORTER = 37
DECODED = 6
SMALL_K = 8

PADDING = "padding and batching do not matter"

Plan = Mapping[str, Method]


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
        writes = task in ("seq2seq-lm", "speech-seq2seq")
        self.encoder_decoder = writes and model.config.is_encoder_decoder
        self.causal = task == "causal-lm" or (writes and not self.encoder_decoder)
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
        self.tokens = random_tokens(model, 2, self.length)
        self.targets = random_tokens(model, 2, self.length // 2)

    @contextmanager
    def patched(self, plan: Plan) -> Any:
        """The model is patched inside the block; dense where the plan is empty."""
        if not plan:
            yield None
            return
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
        before = self.dense()
        settings = _settings(self.model)
        yield self.called()
        restored = _settings(self.model) == settings and torch.equal(self.run(self.tokens[:1]), before)
        yield Check("unpatching restores the dense model to the bit", restored)
        yield self.blame("keeping all equals the dense model", self.dense_error)
        if not self.others:
            yield self.blame_unless_dense(PADDING, self.padding_error, "the dense model itself heeds padding")
        elif self.takes_padded_sound:
            yield self.blame_unless_dense(PADDING, self.sound_padding_error, "the dense model itself heeds padding")
        if not (self.causal or self.encoder_decoder):
            return
        future = self.blame_unless_dense(
            "the future does not matter",
            self.future_error,
            "the dense model itself sees later tokens, and a KV cache is nothing for it",
        )
        yield future
        if future.skipped is None and self.has_cache():
            yield self.blame("cached decoding equals the full forward pass", self.cache_error)

    def dense(self) -> Tensor:
        """What the model says before anything is patched.

        NotPatchableError if it does not run on these inputs, or says another thing each time.
        """
        name, way_out = type(self.model).__name__, "the patch cannot be verified on it: use --no-verify"
        what = f"{name} does not run on random {' and '.join(self.source(self.tokens))} alone"
        with finite_outputs(self.model), _own_errors(what, way_out):
            before = self.run(self.tokens[:1])
        if not torch.equal(self.run(self.tokens[:1]), before):
            raise NotPatchableError(f"{name} says something else each time that it reads the same; {way_out}")
        return before

    def called(self) -> Check:
        what = f"the code of {type(self.model).__name__} does not run with the patch"
        with self.patched(_dense(self.plan)) as patch, _own_errors(what, "nothing was written"):
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

    def blame_unless_dense(self, name: str, measure: Callable[[Plan], float], why: str) -> Check:
        """As blame; skipped where the model fails the check without any patch."""
        return Check(name, True, skipped=why) if measure({}) > self.tolerance else self.blame(name, measure)

    def dense_error(self, plan: Plan) -> float:
        dense = self.run(self.tokens[:1])
        with self.patched(_dense(plan)):
            return difference(self.run(self.tokens[:1]), dense)

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
                errors.append(typical_difference(batch, alone))
        return max(errors)

    @property
    def takes_padded_sound(self) -> bool:
        """Whether a batch of sounds may be of unlike lengths, with a mask that says so."""
        return "input_values" in self.others and "attention_mask" in self.arguments and not self.encoder_decoder

    def sound_padding_error(self, plan: Plan) -> float:
        """As padding_error for sound, padded behind by noise."""
        sound = self.others["input_values"]
        short = sound[:, : sound.shape[1] * self.shorter // self.length]
        batch, mask = torch.cat([sound.flip(1), sound]), torch.ones(2, sound.shape[1], dtype=torch.int64)
        mask[1, short.shape[1] :] = 0
        with self.patched(_small(plan)):
            alone = features(self.model(input_values=short))
            padded = features(self.model(input_values=batch, attention_mask=mask.to(sound.device)))
        return typical_difference(padded[1:, : alone.shape[1]], alone)

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
        return difference(second[:, :half], first[:, :half])

    def has_cache(self) -> bool:
        """Whether the model decodes with a KV cache at all."""
        inputs = self.source(self.tokens[:1])
        if self.encoder_decoder:
            inputs = {"decoder_input_ids": self.targets[:1], **self.encoded()}
        return cache_in(self.model(**inputs, use_cache=True)) is not None

    def encoded(self) -> dict[str, Any]:
        """What an encoder-decoder's decoder reads beside its tokens."""
        return {"encoder_outputs": self.model.get_encoder()(**self.source(self.tokens[:1]))}

    def cache_error(self, plan: Plan) -> float:
        """The last tokens one by one through a KV cache, against one pass over all of them."""
        ids = self.targets[:1] if self.encoder_decoder else self.tokens[:1]
        key = "decoder_input_ids" if self.encoder_decoder else "input_ids"
        with self.patched(_small(plan)):
            full = self.run(self.tokens[:1])
            fixed = self.encoded() if self.encoder_decoder else {}
            step = self.model(**{key: ids[:, :-DECODED]}, use_cache=True, **fixed)
            outputs = []
            for position in range(ids.shape[1] - DECODED, ids.shape[1]):
                token = ids[:, position : position + 1]
                carried = {cache_argument(self.model): cache_in(step)}
                step = self.model(**{key: token}, use_cache=True, **carried, **fixed)
                outputs.append(features(step))
        return typical_difference(torch.cat(outputs, 1), full[:, -DECODED:])


@contextmanager
def _own_errors(what: str, so: str) -> Iterator[None]:
    """What a model's own code raises inside the block, as a NotPatchableError."""
    try:
        yield
    except SparsifyError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotPatchableError(f"{what} ({first}); {so}") from error


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
