"""The demo models under every method on the demo's validation questions: prints the table of the README.

python examples/demo_table.py                              # all of it; minutes
python examples/demo_table.py --models demo-t5 --limit 40
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from hf_sparsify import Clustered, LoadOptions, TopK, TopKFeedForward, UsageError
from hf_sparsify.commands.calibrate import calibrate_target
from hf_sparsify.commands.target import DEFAULT_COMPENSATION, Target, load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS
from hf_sparsify.evaluation.run import Contender, Evaluation, evaluate
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.recipe import Recipe
from hf_sparsify.tables import percent

TOP_K = TopK(k=16, compensation=DEFAULT_COMPENSATION)
CLUSTERED = Clustered(clusters=50, k=32)
FEED_FORWARD = TopKFeedForward(keep=0.125)
KEPT = {
    "kept_share": "attention elements",
    "cluster_scores_share": "scores computed",
    "activations_kept_share": "activations",
}


def recipes(loaded: LoadedModel) -> Iterator[tuple[str, Recipe | None]]:
    """Every row of a model's part of the table; None where a method is not for this model."""

    def recipe(*methods: Any, **selection: str) -> Recipe:
        return Recipe(loaded.base, plan_model(loaded.model, *methods, **selection))

    top_k = recipe(TOP_K)
    yield f"top-k, {TOP_K.describe()}", top_k
    calibrated = calibrate_target(Target(loaded, top_k, None), load_items("demo", "train"))
    yield f"top-theta, {TOP_K.describe()}", calibrated.recipe
    try:
        yield f"clustered, {CLUSTERED.describe()} (encoder)", recipe(CLUSTERED, kind="self", stack="encoder")
    except UsageError:  # no encoder to select
        yield "clustered", None
    yield f"top-k FFN, {FEED_FORWARD.describe()}", recipe(None, FEED_FORWARD)
    yield f"top-k, {TOP_K.describe()} and top-k FFN, {FEED_FORWARD.describe()}", recipe(TOP_K, FEED_FORWARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted(DEMO_MODELS))
    parser.add_argument("--limit", type=int, help="questions (default: all)")
    args = parser.parse_args()
    questions = load_items("demo").sample(args.limit, seed=0)
    print("| model | patched with | EM | F1 | kept |\n|---|---|---|---|---|")
    for name in args.models:
        loaded = load_named(name, LoadOptions())
        task = task_for(loaded, questions, TaskOptions(batch_size=32, max_new_tokens=8))
        rows = dict(recipes(loaded))
        # All of them in one evaluation, in which the dense model answers once.
        contenders = [Contender(recipe.plan, recipe.thresholds) for recipe in rows.values() if recipe]
        evaluations = evaluate(loaded, contenders, task)
        print(f"| {name} | dense | {_scores(evaluations[0], 'dense')} | all |")
        for label, recipe in rows.items():
            if recipe is None:
                print(f"| {name} | {label} | - | - | causal: not for this model |")
                continue
            evaluation = evaluations.pop(0)
            print(f"| {name} | {label} | {_scores(evaluation, 'patched')} | {_kept(evaluation)} |", flush=True)


def _scores(evaluation: Evaluation, arm: str) -> str:
    scores = evaluation.task.totals(evaluation.records, arm)
    return f"{scores['exact_match']:.1f} | {scores['f1']:.1f}"


def _kept(evaluation: Evaluation) -> str:
    total = evaluation.journal.meter.summary()["total"]
    return ", ".join(f"{what} {percent(total[key])}" for key, what in KEPT.items() if total[key] is not None)


if __name__ == "__main__":
    main()
