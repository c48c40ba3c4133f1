"""Two places where plain torch is already faster than dense, timed side by side in one process: prints two tables.

    OMP_NUM_THREADS=1 python examples/speed.py
    OMP_NUM_THREADS=1 python examples/speed.py --rounds 3 --lengths 512 1024

Ratios above 1 mean faster than dense. Each round times both sides one after the other on fresh random inputs, k-means
included; shown is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from hf_sparsify import Clustered, TopKFeedForward
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges
from torch import Tensor
from torch.nn import functional

HEADS, WIDTH = 8, 64
LAYERS = 12  # weights of so many layers take turns, so that none stays in the cache
SHAPES = ((512, 2048), (768, 3072), (2048, 8192))
SHARES = (16, 8)


def ratio(dense: Callable[[], object], sparse: Callable[[], object]) -> float:
    """Time of dense over time of sparse, once each."""
    times = []
    for run in (dense, sparse):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[0] / times[1]


def clustered(length: int, rounds: int) -> float:
    """torch's own attention against clustered attention on one long bidirectional sequence."""
    ratios = []
    for _ in range(rounds):
        query, key, value = (torch.randn(1, HEADS, length, WIDTH) for _ in range(3))
        inputs = AttentionInputs(query, key, value, RowRanges.all_keys(length, length), scale=WIDTH**-0.5)
        ratios.append(
            ratio(
                lambda q=query, k=key, v=value: functional.scaled_dot_product_attention(q, k, v),
                lambda inputs=inputs: Clustered().attend(inputs),
            )
        )
    return statistics.median(ratios)


def feed_forward(d_model: int, d_ff: int, share: int, tokens: int, rounds: int) -> float:
    """A whole ReLU feed-forward layer against the same with 1 / share of its activations kept."""
    up = [torch.randn(d_ff, d_model) * 0.02 for _ in range(LAYERS)]
    down = [torch.randn(d_model, d_ff) * 0.02 for _ in range(LAYERS)]
    rows = [weight.t().contiguous() for weight in down]
    method = TopKFeedForward(k=d_ff // share)

    def layers(hidden: Tensor, last: Callable[[Tensor, int], Tensor]) -> None:
        for index in range(LAYERS):
            last(functional.relu(functional.linear(hidden, up[index])), index)

    ratios = []
    for _ in range(rounds):
        hidden = torch.randn(tokens, d_model)
        ratios.append(
            ratio(
                lambda hidden=hidden: layers(hidden, lambda inner, i: functional.linear(inner, down[i])),
                lambda hidden=hidden: layers(hidden, lambda inner, i: method.project(inner, rows[i], None)),
            )
        )
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    print(f"{torch.get_num_threads()} torch threads, {Clustered().describe()}, {HEADS} heads of {WIDTH}\n")
    print("| tokens | clustered attention, x SDPA |\n|---|---|")
    for length in args.lengths:
        print(f"| {length} | {clustered(length, args.rounds):.2f} |", flush=True)
    print("\n| d_model / d_ff | kept |" + "".join(f" {tokens} token(s), x dense |" for tokens in args.tokens))
    print("|---|---|" + "---|" * len(args.tokens))
    for d_model, d_ff in SHAPES:
        for share in SHARES:
            found = [feed_forward(d_model, d_ff, share, tokens, args.rounds) for tokens in args.tokens]
            print(f"| {d_model} / {d_ff} | 1/{share} |" + "".join(f" {x:.2f} |" for x in found), flush=True)


if __name__ == "__main__":
    main()
