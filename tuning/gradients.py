"""What a small change of a module's output does to what the model says, to second order, without labels.

KL(dense || changed) is about half the mean of (g . change)^2, where g is the gradient of the log-probability of an
outcome that is drawn from the dense model itself, with respect to the module's output: the Fisher information at work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DRAWS = 4  # outcomes drawn for an item
LAST_POSITIONS = 32  # whose outcomes count, of a model that predicts every token

Inputs = dict[str, Tensor]


def output_gradients(
    model: nn.Module, names: Sequence[str], inputs: Inputs, generator: torch.Generator, draws: int = DRAWS
) -> tuple[dict[str, list[Tensor]], int] | None:
    """For each module `draws` gradients like its output, and how many outcomes one draw has.

    The log-probability is summed over outcomes: the last tokens, a label, or an answer's start and end. None for a
    model that gives no distribution. The parameters' requires_grad is as before when this is done.
    """
    outputs: dict[str, Tensor] = {}
    with _parameters_fixed(model), torch.enable_grad(), ExitStack() as stack:
        for name in names:
            hook = _keeper(outputs, name)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        distributions = _log_probs(model(**inputs, use_cache=False))
        if not distributions or not outputs:
            return None
        kept = list(outputs.values())
        found: dict[str, list[Tensor]] = {name: [] for name in outputs}
        for draw in range(draws):
            total = sum(_drawn(one, generator) for one in distributions)
            made = torch.autograd.grad(total, kept, retain_graph=draw < draws - 1, allow_unused=True)  # type: ignore[arg-type]
            for name, output, gradient in zip(outputs, kept, made, strict=True):
                found[name].append(torch.zeros_like(output) if gradient is None else gradient)
    return found, sum(len(one) for one in distributions)


@contextmanager
def _parameters_fixed(model: nn.Module) -> Iterator[None]:
    """Only what depends on the modules' outputs is remembered for the way back."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _keeper(outputs: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        tensor = output if isinstance(output, Tensor) else output[0]
        # The first modules of a model depend on nothing that has a gradient.
        outputs[name] = tensor if tensor.requires_grad else tensor.requires_grad_(True)
        # A copy, as a model may add to what it gets in place, which torch refuses for a leaf and for a view of one.
        copy = outputs[name].clone()
        return copy if isinstance(output, Tensor) else (copy, *output[1:])

    return keep


def _log_probs(output: Any) -> list[Tensor]:
    """The distributions [outcomes, values] of a model's output, as log-probabilities in float32."""
    if getattr(output, "start_logits", None) is not None:
        return [logits.float().log_softmax(-1) for logits in (output.start_logits, output.end_logits)]
    logits = getattr(output, "logits", None)
    if logits is None:
        return []
    if logits.ndim == 3:
        logits = logits[:, -LAST_POSITIONS:].flatten(0, 1)
    return [logits.float().log_softmax(-1)]


def _drawn(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """The summed log-probability of one outcome drawn from each distribution."""
    outcomes = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(log_probs.device)
    return log_probs.gather(-1, outcomes).sum()
