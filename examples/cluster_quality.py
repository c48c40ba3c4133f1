"""How far clustered attention's rows are from the dense rows, on a model's own queries and keys: prints a table.

    python examples/cluster_quality.py                                  # demo-bert on its own stories
    python examples/cluster_quality.py --model models/all-MiniLM-L6-v2 --dataset squad.json --tokens 512

The distance is the L1 norm of the difference of two attention rows (0 to 2), mean over all modules, heads and tokens.
"row space" is what the package does by default: k-means in the metric of the score rows. "query space" is k-means on
the queries themselves, seeded and updated alike. "hamming" is the paper's: k-means over hash codes of the queries.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import hf_sparsify
import torch
from hf_sparsify import Clustered
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.patcher.methods import AttentionInputs, attend_rows
from hf_sparsify.patcher.methods.cluster_rows import attend_clusters
from hf_sparsify.patcher.methods.k_means import k_means
from torch import Tensor

SPACES = ("hamming", "query space", "row space")


@dataclass(frozen=True)
class Compare(Clustered):
    """Attends densely, and notes how far several kinds of clusters would be off."""

    counts: tuple[int, ...] = (25, 100)
    distances: dict[tuple[str, int, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def attend(self, inputs: AttentionInputs, **options: Any) -> tuple[Tensor, None]:
        batch, groups, length = inputs.key.shape[:3]
        rows = replace(inputs, value=torch.eye(length).expand(batch, groups, -1, -1))
        dense = attend_rows(rows)[0]
        for clusters in self.counts:
            for space in SPACES:
                assigned = self.clusters_in(space, inputs, clusters)
                for refined in (0, self.k):
                    found = attend_clusters(rows, assigned, min(clusters, length), refined)
                    self.distances[space, clusters, refined].append(float((found - dense).abs().sum(-1).mean()))
        return attend_rows(inputs)[0], None

    def clusters_in(self, space: str, inputs: AttentionInputs, clusters: int) -> Tensor:
        """The cluster of each query."""
        if space == "query space":
            generator = torch.Generator().manual_seed(self.seed)
            return k_means(inputs.query, min(clusters, inputs.query.shape[2]), self.iterations, generator)
        clustering = "hamming" if space == "hamming" else "rows"
        return replace(self, clusters=clusters, clustering=clustering).group(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-bert", help="an encoder: a demo model, a folder or a Hub name")
    parser.add_argument("--dataset", default="demo", help="whose passages are read one after the other")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per text")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--clusters", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--k", type=int, default=32, help="refined keys per cluster")
    parser.add_argument("--iterations", type=int, default=3)
    args = parser.parse_args()

    loaded = load_named(args.model, hf_sparsify.LoadOptions())
    passages = dict.fromkeys(question.context for question in load_items(args.dataset).items)
    ids = loaded.tokenizer(" ".join(passages), add_special_tokens=False, verbose=False)["input_ids"]
    method = Compare(k=args.k, iterations=args.iterations, counts=tuple(args.clusters))
    with hf_sparsify.patch(loaded.model, method), torch.inference_mode():
        for start in range(0, min(len(ids), args.texts * args.tokens), args.tokens):
            loaded.model(input_ids=torch.tensor([ids[start : start + args.tokens]]))
    print("| clusters | k-means by | plain | improved |\n|---|---|---|---|")
    for clusters in args.clusters:
        for space in SPACES:
            plain, improved = (torch.tensor(method.distances[space, clusters, k]).mean() for k in (0, args.k))
            print(f"| {clusters} | {space} | {plain:.3f} | {improved:.3f} |")


if __name__ == "__main__":
    main()
