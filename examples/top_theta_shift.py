"""How many keys thresholds keep on other texts than they were fitted on: prints one table.

python examples/top_theta_shift.py models/SmolLM2-135M-Instruct --calibration squad=squad-calibration.json \\
    --distractors 6 --texts squad=squad-eval.json code=module.py german=german.txt

A text is NAME=FILE, or demo. Names that `sparsify datasets` lists are read in that schema, others as plain text. kept
/ k would be 1 everywhere if thresholds kept what they promise. p5 and p95 are over rows.
"""

from __future__ import annotations

import argparse

from fidelity_lab import Inputs, calibrated, prompts
from hf_sparsify import LoadedModel, LoadOptions, TopK
from hf_sparsify.calibration.check import measure_kept
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS
from hf_sparsify.patcher.plan import plan_model


def read(loaded: LoadedModel, text: str, samples: int, distractors: int) -> tuple[str, list[Inputs]]:
    """The name of a text, and model inputs made of it."""
    name, _, path = text.partition("=")
    if name in DATASETS or not path:
        return name, prompts(loaded, text, samples, distractors)
    return name, prompts(loaded, path, samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--distractors", type=int, default=6, help="other passages in every prompt of a data set")
    parser.add_argument("--samples", type=int, default=16, help="of the calibration and of every text")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--compensation", default="sdc+vmc")
    args = parser.parse_args()
    loaded = load_named(args.model, LoadOptions())
    texts = dict(read(loaded, text, args.samples, args.distractors) for text in args.texts)
    plan = plan_model(loaded.model, TopK(k=args.k, compensation=args.compensation))
    made = calibrated(loaded, plan, prompts(loaded, args.calibration, args.samples, args.distractors), list(PLACEMENTS))
    lengths = {name: max(inputs["input_ids"].shape[1] for inputs in samples) for name, samples in texts.items()}
    print(f"k = {args.k}, {args.compensation}, kept / k (p5 - p95); rows saved by min-keep\n")
    print("| placement |" + "".join(f" {name}, up to {length} tokens |" for name, length in lengths.items()))
    print("|---|" + "---|" * len(texts))
    for placement, contender in made.items():
        cells = []
        for samples in texts.values():
            kept = measure_kept(loaded.model, contender.plan, contender.thresholds, samples).total().summary()
            saved = 100 * kept["rows_saved_by_min_keep"] / kept["long_rows"]
            spread = f"{kept['kept_per_k_p5']:.2f} - {kept['kept_per_k_p95']:.2f}"
            cells.append(f" {kept['kept_per_k']:.2f} ({spread}); {saved:.2f} % |")
        print(f"| {placement} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
