"""Exact match of demo-t5 by kept keys per row and kind of question: prints the table of the README.

python examples/demo_curve.py [--limit N]
"""

from __future__ import annotations

import argparse

from hf_sparsify import LoadOptions, TopK
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.results import summarize
from hf_sparsify.evaluation.run import evaluate
from hf_sparsify.evaluation.sources import load_questions
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.plan import make_plan

KEPT = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="questions (default: all)")
    questions = load_questions("demo").sample(parser.parse_args().limit, seed=0)
    loaded = load_named("demo-t5", LoadOptions())
    modules = attention_modules(loaded.model)
    columns = {}
    for k in KEPT:
        results = summarize(evaluate(loaded, make_plan(modules, TopK(k=k)), questions, batch_size=32, max_new_tokens=8))
        columns[str(k)] = _exact_match(results, "patched")
        columns["dense"] = _exact_match(results, "dense")
    order = [*(str(k) for k in KEPT), "dense"]
    print("| k | " + " | ".join(order) + " |\n|---|" + "---|" * len(order))
    for row in columns["dense"]:
        print(f"| {row} | " + " | ".join(f"{columns[column][row]:.1f}" for column in order) + " |")


def _exact_match(results: dict, arm: str) -> dict[str, float]:
    kinds = {kind: row[arm]["exact_match"] for kind, row in results["by_kind"].items()}
    return {**kinds, "all": results["scores"][arm]["exact_match"]}


if __name__ == "__main__":
    main()
