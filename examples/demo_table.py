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
from hf_sparsify.commands.target import Target, load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS
from hf_sparsify.evaluation.results import summarize
from hf_sparsify.evaluation.run import evaluate
from hf_sparsify.evaluation.sources import load_questions
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.patcher.recipe import Recipe
from hf_sparsify.tables import percent

TOP_K = TopK(k=16)
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
    calibrated = calibrate_target(Target(loaded, top_k, None), load_questions("demo", "train"), samples=128, seed=0)
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
    questions = load_questions("demo").sample(args.limit, seed=0)
    print("| model | patched with | EM | F1 | kept |\n|---|---|---|---|---|")
    for name in args.models:
        loaded = load_named(name, LoadOptions())
        dense_shown = False
        for label, recipe in recipes(loaded):
            if recipe is None:
                print(f"| {name} | {label} | - | - | causal: not for this model |")
                continue
            evaluation = evaluate(
                loaded, recipe.plan, questions, thresholds=recipe.thresholds, batch_size=32, max_new_tokens=8
            )
            results = summarize(evaluation)
            if not dense_shown:
                print(f"| {name} | dense | {_scores(results, 'dense')} | all |")
                dense_shown = True
            print(f"| {name} | {label} | {_scores(results, 'patched')} | {_kept(results)} |", flush=True)


def _scores(results: dict[str, Any], arm: str) -> str:
    scores = results["scores"][arm]
    return f"{scores['exact_match']:.1f} | {scores['f1']:.1f}"


def _kept(results: dict[str, Any]) -> str:
    total = results["kept"]["total"]
    return ", ".join(f"{what} {percent(total[key])}" for key, what in KEPT.items() if total[key] is not None)


if __name__ == "__main__":
    main()
