"""Exact match of the demo models by how much is kept: prints the tables of docs/demo-models.md.

python examples/demo_curve.py          # kept keys per row, in all attention
python examples/demo_curve.py --ffn    # kept activations per token, in all feed-forward layers
python examples/demo_curve.py --models demo-t5 --kept 1 64 --limit 40
"""

from __future__ import annotations

import argparse

from hf_sparsify import LoadOptions, TopK, TopKFeedForward
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS
from hf_sparsify.evaluation.demo.stories import LOOKUP_VALUES, POOL_VALUES
from hf_sparsify.evaluation.run import evaluate
from hf_sparsify.evaluation.sources import load_questions
from hf_sparsify.evaluation.tasks.base import Prediction
from hf_sparsify.patcher.plan import plan_model

ROWS = {"look-ups": LOOKUP_VALUES, "pooling": POOL_VALUES, "all": {**LOOKUP_VALUES, **POOL_VALUES}}


def exact_match(predictions: list[Prediction], arm: str) -> dict[str, float]:
    """In percent, for each row of the table."""
    found = {}
    for row, kinds in ROWS.items():
        hits = [p.scores[arm]["exact_match"] for p in predictions if p.question.kind in kinds]
        found[row] = 100 * sum(hits) / len(hits)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted(DEMO_MODELS))
    parser.add_argument("--ffn", action="store_true", help="top-k feed-forward instead of top-k attention")
    parser.add_argument("--kept", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--limit", type=int, help="questions (default: all)")
    args = parser.parse_args()
    questions = load_questions("demo").sample(args.limit, seed=0)
    print(f"| EM, {'d_ff' if args.ffn else 'keys'} kept |", *(f"{k} |" for k in args.kept), "dense |")
    print("|---|" + "---|" * (len(args.kept) + 1))
    for name in args.models:
        loaded = load_named(name, LoadOptions())
        columns = []
        for k in args.kept:
            methods = (None, TopKFeedForward(k=k)) if args.ffn else (TopK(k=k), None)
            plan = plan_model(loaded.model, *methods)
            predictions = evaluate(loaded, plan, questions, batch_size=32, max_new_tokens=8).predictions
            columns.append(exact_match(predictions, "patched"))
        columns.append(exact_match(predictions, "dense"))
        for row in ROWS:
            print(f"| {name}, {row} |", *(f"{column[row]:.1f} |" for column in columns), flush=True)


if __name__ == "__main__":
    main()
