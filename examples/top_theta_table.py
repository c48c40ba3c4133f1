"""Top-k and top-theta in every placement, with every compensation, against the dense model: prints one table.

python examples/top_theta_table.py models/SmolLM2-135M-Instruct \\
    --evaluation squad=squad-eval.json --calibration squad=squad-calibration.json --distractors 5 --questions 48

Teacher-forced on prompts with their gold answers, each passage among so many others. Thresholds are fitted on prompts
of other questions, at the same k and compensation as they are used. Ctrl-C prints what is there so far.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from typing import Any

from fidelity_lab import (
    Contender,
    Outcome,
    Workers,
    calibrated,
    calibration_prompts,
    compare_all,
    difference,
    prompt_arguments,
    prompts,
)
from hf_sparsify import LoadedModel, LoadOptions, TopK
from hf_sparsify.commands.target import load_named
from hf_sparsify.patcher.methods.compensation import COMPENSATIONS
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS
from hf_sparsify.patcher.plan import plan_model

HEADER = (
    "| k | compensation | method | kept | kept / k | p5 - p95 | V rows | KL | agreement, % | less top-k |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def contenders(loaded: LoadedModel, samples: list[Any], k: int, compensation: str, args: Any) -> list[Contender]:
    """Top-k and the placements at one k and compensation."""
    method = TopK(k=k, compensation=compensation, v_mean=args.v_mean)
    plan = plan_model(loaded.model, method, skip_layers=args.skip_layers)
    found = [Contender("top-k", dict(plan))]
    if args.placements:
        found += calibrated(loaded, dict(plan), samples, args.placements).values()
    return [Contender(f"{k} | {compensation} | {one.name}", one.plan, one.thresholds) for one in found]


def rows(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """The lines of the table."""
    for name, outcome in outcomes.items():
        reference = outcomes[" | ".join([*name.split(" | ")[:2], "top-k"])]
        kept = outcome.meter.summary()
        yield " | ".join(
            [
                f"| {name}",
                f"{100 * kept['kept_share']:.1f} %",
                f"{kept['kept_per_k']:.2f}",
                f"{kept['kept_per_k_p5']:.2f} - {kept['kept_per_k_p95']:.2f}",
                f"{100 * kept['decode_v_rows_share']:.1f} %",
                f"{statistics.mean(outcome.kl):.3f}",
                outcome.spread(),
                f"{difference(outcome, reference)} |",
            ]
        )


def main() -> None:
    parser = prompt_arguments(__doc__)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--samples", type=int, default=16, help="calibration prompts")
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--compensations", nargs="+", default=list(COMPENSATIONS))
    parser.add_argument("--placements", nargs="*", default=list(PLACEMENTS))
    parser.add_argument("--v-mean", default="visible")
    parser.add_argument("--skip-layers", help="layers that stay dense, e.g. 0,1")
    parser.add_argument("--last", type=int, default=256, help="tokens of each prompt that are compared")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    loaded = load_named(args.model, LoadOptions())
    samples = calibration_prompts(loaded, args) if args.placements else []
    asked = prompts(loaded, args.evaluation, args.questions, args.distractors)
    lengths = [inputs["input_ids"].shape[1] for inputs in asked]
    print(f"{len(asked)} prompts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}\n")
    workers = Workers(args.model, args.workers)
    settings = [(samples, k, compensation, args) for k in args.k for compensation in args.compensations]
    together = [one for made in workers.each(contenders, settings) for one in made]
    print(f"{len(together)} contenders are ready", file=sys.stderr, flush=True)
    outcomes = compare_all(workers, asked, together, args.last)
    print(HEADER, *rows(outcomes), sep="\n", flush=True)


if __name__ == "__main__":
    main()
