"""Peak memory and time of one training step of one attention layer, each cell in a process of its own: prints a table.

    OMP_NUM_THREADS=1 python examples/training_memory.py
    OMP_NUM_THREADS=1 python examples/training_memory.py --lengths 16384 --ways top-k sdpa

Causal, one sequence, 12 heads of 64, float32, k = 64. Memory is what the process grew by during the forward and the
backward pass, beside the inputs: output, gradients and everything in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from hf_sparsify import TopK
from hf_sparsify.benchmark import peak
from hf_sparsify.patcher.methods import AttentionInputs, RowRanges
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

CPU = torch.device("cpu")
HEADS, WIDTH, KEPT = 12, 64, 64
WAYS = ("top-k", "sdpa", "eager")


def attend(way: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One layer's attention, causal."""
    length = query.shape[2]
    if way == "sdpa":
        return scaled_dot_product_attention(query, key, value, is_causal=True)
    if way == "eager":
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        return (query @ key.mT * WIDTH**-0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ value
    inputs = AttentionInputs(query, key, value, RowRanges.causal(length, length), scale=WIDTH**-0.5)
    return TopK(k=KEPT).attend(inputs)[0]


def measure(way: str, length: int) -> None:
    """Prints MiB and seconds of one step, after a small one that loads what torch loads late."""
    for count in (64, length):
        query, key, value = (torch.randn(1, HEADS, count, WIDTH, requires_grad=True) for _ in range(3))
        before, start = peak.peak(CPU) or 0, time.perf_counter()
        attend(way, query, key, value).sum().backward()
        seconds = time.perf_counter() - start
    print(f"{((peak.peak(CPU) or 0) - before) / 2**20:.0f} MiB, {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    print("| tokens | " + " | ".join(options.ways) + " |\n" + "|---" * (1 + len(options.ways)) + "|")
    for length in options.lengths:
        cells = []
        for way in options.ways:
            command = [sys.executable, __file__, "--measure", way, str(length)]
            cells.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        print(f"| {length} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
