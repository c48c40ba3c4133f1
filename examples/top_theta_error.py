"""How far attention outputs are from dense ones, layer by layer: top-k and top-theta on the same dense activations.

python examples/top_theta_error.py models/SmolLM2-135M-Instruct \\
    --evaluation squad=squad-eval.json --calibration squad=squad-calibration.json --distractors 5

Shown is the length of (output - dense output) over that of the dense output, per row and head, averaged over rows
longer than k; and the kept count over k, because errors are comparable at equal counts only.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from fidelity_lab import Contender, Inputs, calibrated, calibration_prompts, prompt_arguments, prompts
from hf_sparsify import LoadedModel, LoadOptions, TopK
from hf_sparsify.commands.target import load_named
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.methods import AttentionInputs, attend_rows
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS
from hf_sparsify.patcher.plan import plan_model
from torch import Tensor


@dataclass
class Probe:
    """Stands in for a module's method: dense, and beside it what every contender would have given."""

    name: str
    contenders: list[Contender]
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kept: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def attend(self, inputs: AttentionInputs, **_: Any) -> tuple[Tensor, None]:
        """The dense output, as attention methods return it."""
        dense, _counts = attend_rows(inputs)
        lengths = inputs.visibility.lengths()
        for contender in self.contenders:
            method: Any = contender.plan[self.name]
            out, counts = method.attend(inputs, thresholds=contender.thresholds.get(self.name), count=True)
            rows_k = method.rows_k(lengths)
            long = (rows_k < lengths).expand(out.shape[:3])
            error = (out - dense).norm(dim=-1) / dense.norm(dim=-1)
            self.errors[contender.name].append(float(error[long].mean()))
            self.kept[contender.name].append(float((counts.kept / rows_k)[long].mean()))
        return dense, None


def measure(loaded: LoadedModel, contenders: list[Contender], samples: list[Inputs]) -> list[Probe]:
    """One probe for every module, in order."""
    plan = contenders[0].plan
    probes = []
    with apply_plan(loaded.model, plan) as patch, torch.inference_mode():
        for module in patch.attention_patches:
            probe = Probe(module.name, contenders)
            module.method = probe  # type: ignore[assignment]
            probes.append(probe)
        for inputs in samples:
            loaded.model(**inputs, use_cache=False)
    return probes


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = prompt_arguments(__doc__)
    parser.add_argument("--samples", type=int, default=8, help="of the calibration and of the evaluation")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--compensation", default="sdc+vmc")
    args = parser.parse_args()
    loaded = load_named(args.model, LoadOptions())
    plan = plan_model(loaded.model, TopK(k=args.k, compensation=args.compensation))
    samples = calibration_prompts(loaded, args)
    made = [Contender("top-k", plan), *calibrated(loaded, plan, samples, list(PLACEMENTS)).values()]
    probes = measure(loaded, made, prompts(loaded, args.evaluation, args.samples, args.distractors))
    print(f"k = {args.k}, {args.compensation}: relative output error, kept / k in brackets\n")
    print("| module |" + "".join(f" {one.name} |" for one in made) + "\n|---|" + "---|" * len(made))
    for probe in probes:
        cells = [f" {mean(probe.errors[one.name]):.3f} ({mean(probe.kept[one.name]):.2f}) |" for one in made]
        print(f"| {probe.name} |" + "".join(cells))
    every = [
        (mean([mean(p.errors[o.name]) for p in probes]), mean([mean(p.kept[o.name]) for p in probes])) for o in made
    ]
    print("| mean |" + "".join(f" {error:.3f} ({kept:.2f}) |" for error, kept in every))


if __name__ == "__main__":
    main()
