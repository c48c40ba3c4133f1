"""Which error of a module tells best what the model loses if that module alone is sparse, as `sparsify tune` measures.

python examples/tune_predictors.py models/SmolLM2-135M-Instruct --data squad-calibration.json --samples 8

Truth is the KL divergence from dense at the last tokens with one module sparse, a pass each. Shown is Spearman's rank
correlation with it over modules, and the sum over modules beside the KL divergence with all modules sparse at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from fidelity_lab import Inputs, prompts
from hf_sparsify import LoadedModel, LoadOptions, TopK, TopKFeedForward
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.generation import kl_divergence
from hf_sparsify.patcher.binding.patching import prepare_patch
from hf_sparsify.patcher.methods import Method
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.tuning.sensitivity import ModuleSensitivity, at_keep, measure
from scipy.stats import spearmanr
from torch import Tensor

LAST = 32  # tokens
PREDICTORS: dict[str, Callable[[ModuleSensitivity, int], float]] = {
    "error of head outputs": lambda module, place: mean(
        errors[place] for errors in module.error_by_head or [[0.0] * 99]
    ),
    "stream error": lambda module, place: module.stream_error[place],
    "predicted KL": lambda module, place: module.error[place],
}


def log_probs(model: Any, inputs: Inputs) -> Tensor:
    return model(**inputs, use_cache=False).logits[0, -LAST:].float().log_softmax(-1)


def true_kl(loaded: LoadedModel, plan: dict[str, Method], samples: list[Inputs], dense: list[Tensor]) -> float:
    """KL from dense with this plan, mean over samples; dense: their log-probabilities."""
    with torch.inference_mode(), prepare_patch(loaded.model, plan).resumed():
        moved = [log_probs(loaded.model, inputs) for inputs in samples]
    return mean(float(kl_divergence(p, q).mean()) for p, q in zip(dense, moved, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.2, 0.05])
    parser.add_argument("--ffn", action="store_true", help="feed-forward layers in place of attention")
    args = parser.parse_args()
    loaded = load_named(args.model, LoadOptions())
    attention, feed_forward = TopK(keep=0.5, compensation="sdc+vmc"), TopKFeedForward(keep=0.5)
    plan = plan_model(loaded.model, None, feed_forward) if args.ffn else plan_model(loaded.model, attention)
    samples = prompts(loaded, args.data, args.samples)
    keeps = [1.0, *sorted(args.keep, reverse=True)]
    found = measure(loaded.model, plan, keeps, [[inputs] for inputs in samples])
    with torch.inference_mode():
        dense = [log_probs(loaded.model, inputs) for inputs in samples]
    shown = [name for name in PREDICTORS if not (args.ffn and name == "error of head outputs")]
    print(f"{len(plan)} modules, {len(samples)} samples\n")
    print(f"| keep | {' | '.join(shown)} | sum of predicted KL | sum of true KL | all at once |")
    print("|---|" + "---|" * (len(shown) + 3))
    for place, keep in enumerate(keeps[1:], 1):
        truth = [true_kl(loaded, {name: at_keep(plan[name], keep)}, samples, dense) for name in found.modules]
        ranks = []
        for name in shown:
            predicted = [PREDICTORS[name](module, place) for module in found.modules.values()]
            ranks.append(f"{spearmanr(predicted, truth).statistic:.2f}")
        together = true_kl(loaded, {name: at_keep(method, keep) for name, method in plan.items()}, samples, dense)
        total = sum(module.error[place] for module in found.modules.values())
        print(f"| {keep:g} | {' | '.join(ranks)} | {total:.2g} | {sum(truth):.2g} | {together:.2g} |", flush=True)


if __name__ == "__main__":
    main()
