"""The clustered-attention paper's table on fine-tuned RoBERTa, run again: prints our figures above the paper's.

    python examples/clustered_paper.py                             # all of it: from the Hub; hours without a GPU
    python examples/clustered_paper.py --tasks SQuAD RTE --limit 500
    python examples/clustered_paper.py --rows rows.json            # own models and data

rows.json is a list such as [{"task": "mine", "model": "models/classifier", "dataset": "pairs.jsonl"}].

Vyas, Katharopoulos, Fleuret 2020 (arXiv 2007.04825) approximate fine-tuned RoBERTa at inference with 25 clusters and 32
refined keys, on the validation sets of GLUE and SQuAD v1.1. Their checkpoints are not public: these are others', so
what compares is the drop from dense. "hamming" is the paper's clustering with 10 updates, as in the authors' code;
"rows" is the package's own. CoLA is scored by Matthews correlation, as GLUE does; STS-B is left out: it has no labels
but grades.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_sparsify import Clustered, ClusteredPlain, LoadOptions
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.run import Contender, Evaluation, evaluate
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.patcher.plan import plan_model
from hf_sparsify.tables import percent

HAMMING_UPDATES = 10
CLUSTERINGS = ("hamming", "rows")
MATTHEWS = "cola"  # the data set that GLUE scores by Matthews correlation


@dataclass(frozen=True)
class Row:
    """A task, who has learnt it, and the paper's figures: dense, clustered and improved clustered attention.

    They are accuracy, F1 of SQuAD, and Matthews correlation of CoLA (the paper does not say so, its size does).
    """

    task: str
    model: str
    dataset: str
    paper: tuple[float, float, float] | None = None


# Figures: the paper's table of GLUE and SQuAD results.
ROWS = (
    Row("CoLA", "textattack/roberta-base-CoLA", "cola", (0.601, 0.598, 0.601)),
    Row("MNLI", "WillHeld/roberta-base-mnli", "mnli", (0.880, 0.794, 0.880)),
    Row("MRPC", "textattack/roberta-base-MRPC", "mrpc", (0.868, 0.436, 0.873)),
    Row("QNLI", "textattack/roberta-base-QNLI", "qnli", (0.929, 0.746, 0.930)),
    Row("QQP", "TehranNLP-org/roberta-base-qqp-2e-5-42", "qqp", (0.915, 0.894, 0.915)),
    Row("RTE", "textattack/roberta-base-RTE", "rte", (0.682, 0.498, 0.704)),
    Row("SST-2", "textattack/roberta-base-SST-2", "sst2", (0.947, 0.944, 0.947)),
    Row("WNLI", "textattack/roberta-base-WNLI", "wnli", (0.437, 0.437, 0.437)),
    Row("SQuAD", "csarron/roberta-base-squad-v1", "squad", (0.904, 0.006, 0.876)),
)


def methods(clusters: int, k: int) -> list[ClusteredPlain]:
    """Clustered and improved clustered attention by each clustering."""
    hamming = {"clustering": "hamming", "iterations": HAMMING_UPDATES}
    return [
        method
        for settings in (hamming, {})
        for method in (ClusteredPlain(clusters, **settings), Clustered(clusters, k=k, **settings))
    ]


def evaluations(row: Row, args: argparse.Namespace) -> list[Evaluation]:
    """One for each method, in which the dense model answers once."""
    loaded = load_named(row.model, LoadOptions(device=args.device))
    items = load_items(row.dataset).sample(args.limit, seed=0)
    task = task_for(loaded, items, TaskOptions(batch_size=args.batch_size))
    contenders = [Contender(plan_model(loaded.model, method)) for method in methods(args.clusters, args.k)]
    return evaluate(loaded, contenders, task)


def score(row: Row, evaluation: Evaluation, arm: str) -> float:
    """Matthews correlation of CoLA, -100 to 100; else the task's own metric, such as accuracy or F1, 0 to 100."""
    if row.dataset != MATTHEWS:
        return evaluation.task.totals(evaluation.records, arm)[evaluation.task.primary]
    acceptable = evaluation.task.labels[1]
    right = [record.item.label == 1 for record in evaluation.records]
    return 100 * matthews(right, [record.answer(arm)["answer"] == acceptable for record in evaluation.records])


def matthews(right: Sequence[bool], given: Sequence[bool]) -> float:
    """Matthews correlation of what was given with what is right, -1 to 1; 0 where either is always the same."""
    pairs = list(zip(right, given, strict=True))
    hits, rejections, alarms, misses = map(pairs.count, [(True, True), (False, False), (False, True), (True, False)])
    sides = (hits + alarms) * (hits + misses) * (rejections + alarms) * (rejections + misses)
    return (hits * rejections - alarms * misses) / math.sqrt(sides) if sides else 0.0


def print_row(row: Row, done: list[Evaluation]) -> None:
    """A line for each clustering, and one for the paper."""
    metric = "Matthews correlation" if row.dataset == MATTHEWS else done[0].task.primary
    first = f"{row.task}, {metric}, {len(done[0].records)} items"
    for index, clustering in enumerate(CLUSTERINGS):
        plain, improved = done[2 * index : 2 * index + 2]
        computed = (found.journal.meter.summary()["total"]["cluster_scores_share"] for found in (plain, improved))
        scores = score(row, plain, "dense"), score(row, plain, "patched"), score(row, improved, "patched")
        figures = " | ".join(f"{value:.1f}" for value in scores)
        print(f"| {first} | {clustering} | {figures} | {', '.join(map(percent, computed))} |", flush=True)
        first = ""
    if row.paper is not None:
        print(f"| | the paper | {' | '.join(f'{100 * value:.1f}' for value in row.paper)} | |", flush=True)


def chosen_rows(args: argparse.Namespace) -> list[Row]:
    """Those of a file, or the paper's."""
    if args.rows is not None:
        return [Row(**entry) for entry in json.loads(args.rows.read_text(encoding="utf-8"))]
    return [row for row in ROWS if row.task in args.tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.task for row in ROWS]
    parser.add_argument("--tasks", nargs="+", default=names, choices=names, help="of the paper's (default: all)")
    parser.add_argument("--rows", type=Path, help="instead: a JSON file with task, model and dataset of each row")
    parser.add_argument("--limit", type=int, help="items of each task (default: all)")
    parser.add_argument("--clusters", type=int, default=25)
    parser.add_argument("--k", type=int, default=32, help="refined keys per cluster")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    print("| task | k-means by | dense | clustered | improved | scores computed |\n|---|---|---|---|---|---|")
    for row in chosen_rows(args):
        print_row(row, evaluations(row, args))


if __name__ == "__main__":
    main()
