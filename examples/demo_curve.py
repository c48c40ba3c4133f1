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
from hf_sparsify.evaluation.run import Contender, Evaluation, evaluate
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.patcher.plan import plan_model

ROWS = {"look-ups": LOOKUP_VALUES, "pooling": POOL_VALUES, "all": {**LOOKUP_VALUES, **POOL_VALUES}}


def exact_match(evaluation: Evaluation, arm: str) -> dict[str, float]:
    """In percent, for each row of the table."""
    found = {}
    for row, kinds in ROWS.items():
        chosen = [record for record in evaluation.records if record.item.kind in kinds]
        found[row] = evaluation.task.totals(chosen, arm)["exact_match"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted(DEMO_MODELS))
    parser.add_argument("--ffn", action="store_true", help="top-k feed-forward instead of top-k attention")
    parser.add_argument("--kept", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--limit", type=int, help="questions (default: all)")
    args = parser.parse_args()
    questions = load_items("demo").sample(args.limit, seed=0)
    print(f"| EM, {'d_ff' if args.ffn else 'keys'} kept |", *(f"{k} |" for k in args.kept), "dense |")
    print("|---|" + "---|" * (len(args.kept) + 1))
    for name in args.models:
        loaded = load_named(name, LoadOptions())
        task = task_for(loaded, questions, TaskOptions(batch_size=32, max_new_tokens=8))
        methods = [(None, TopKFeedForward(k=k)) if args.ffn else (TopK(k=k), None) for k in args.kept]
        # All of them in one evaluation, in which the dense model answers once.
        several = evaluate(loaded, [Contender(plan_model(loaded.model, *chosen)) for chosen in methods], task)
        columns = [exact_match(evaluation, "patched") for evaluation in several]
        columns.append(exact_match(several[0], "dense"))
        for row in ROWS:
            print(f"| {name}, {row} |", *(f"{column[row]:.1f} |" for column in columns), flush=True)


if __name__ == "__main__":
    main()
