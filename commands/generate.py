"""`sparsify generate`: one prompt, answered by the dense and by the patched model."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError, require_at_least_one
from ..evaluation.generation import answer_log_probs, answer_mask, generate_greedy, kl_divergence
from ..evaluation.inputs import check_answer_fits, position_limit, prompt_fits
from ..patcher.binding.modules import input_device, interception_of
from ..patcher.binding.patching import apply_plan, remove_patch
from ..patcher.meter import Meter
from ..patcher.outputs import finite_outputs
from .target import Target


def generate_both(target: Target, prompt: str, max_new_tokens: int) -> dict[str, Any]:
    """{"dense": text, "patched": text, "kl": mean nats over the dense answer, "kept": meter summary, "interception":
    see interception_of}.

    A chat model gets the prompt as a user's turn. UsageError for an empty prompt, a token limit below 1 or a model that
    does not generate; SparsifyError for one that says NaN.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    require_at_least_one(max_new_tokens=max_new_tokens)
    loaded, recipe = target.loaded, target.recipe
    if loaded.base.task not in ("causal-lm", "seq2seq-lm"):
        raise UsageError(f"{loaded.base.id} is no language model ({loaded.base.task}): it does not generate text")
    check_answer_fits(loaded.model, max_new_tokens)
    inputs = prompt_inputs(loaded.tokenizer, prompt, input_device(loaded.model))
    length = inputs["input_ids"].shape[1]
    if not prompt_fits(loaded.model, length, max_new_tokens):
        limit = position_limit(loaded.model)
        raise UsageError(f"the prompt's {length} tokens and the answer do not fit the model's {limit} positions")
    pad, meter = loaded.tokenizer.pad_token_id, Meter()
    patch = apply_plan(loaded.model, recipe.plan, recipe.thresholds)
    try:
        with torch.inference_mode():
            with patch.paused(), finite_outputs(loaded.model):
                dense = generate_greedy(loaded.model, inputs, max_new_tokens, pad)
                expected = answer_log_probs(loaded.model, inputs, dense)
            with patch.metered(meter), finite_outputs(loaded.model, patched=True):
                patched = generate_greedy(loaded.model, inputs, max_new_tokens, pad, meter)
            kl = kl_divergence(expected, answer_log_probs(loaded.model, inputs, dense))
        patch.log_paths()
    finally:
        remove_patch(loaded.model)
    return {
        "dense": loaded.tokenizer.decode(dense[0], skip_special_tokens=True).strip(),
        "patched": loaded.tokenizer.decode(patched[0], skip_special_tokens=True).strip(),
        "kl": float(kl[answer_mask(loaded.model, dense)].mean()),
        "kept": meter.summary()["total"],
        "interception": interception_of(loaded.model, recipe.plan),
    }


def prompt_inputs(tokenizer: Any, prompt: str, device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [1, n] of a prompt; a chat model gets it as a user's turn."""
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
