"""Times decoding steps of attention whose scores come in stages, on a model's own keys: builds and runs a C++ program.

    python examples/staged_kernel.py models/SmolLM2-135M-Instruct --calibration squad-calibration.json \\
        --evaluation squad-eval.json --tokens 4096 8128

Every step runs all layers, with cold caches, one way after the other, for the last queries of the text; see
staged_scores.py for the stages. x is the processor time of the package's kernel, which computes all scores, over that
of each way: the median of the ratios of a round. Stages include the mapping of the query and the copies of the new key.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import torch
from staged_lab import FIT_QUERIES, Layer, Map, grouped, hide_future, opened, recorded, score_axes

SOURCE = Path(__file__).with_suffix("") / "main.cpp"
BUILD = ["c++", "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno"]


def write(path: Path, layers: list[Layer], maps: list[Map], k: int) -> None:
    """Sizes as int64, then float32: each layer's query, key, value and map, and a row's thresholds [r, H].

    Thresholds lie between the scores of the k-th key and the next, as they are and less the log of the denominator.
    """
    (heads, queries, width), (groups, keys, _) = layers[0][0].shape, layers[0][1].shape
    with path.open("wb") as file:
        torch.tensor([len(layers), heads, groups, queries, keys, width]).numpy().tofile(file)
        for layer, fitted in zip(layers, maps, strict=True):
            scores = hide_future(grouped(layer) @ layer[1].mT, queries).view(heads, queries, keys)
            theta = scores.topk(k + 1).values[..., -2:].mean(-1)
            relative = theta - scores.logsumexp(-1)
            for part in (*layer, fitted.mean, fitted.to_query, fitted.to_key, theta.mT, relative.mT):
                part.contiguous().numpy().tofile(file)


def main() -> None:
    args, loaded = opened(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        program, data = Path(folder, "program"), Path(folder, "data.bin")
        subprocess.run([*BUILD, str(SOURCE), "-o", str(program)], check=True)
        for tokens in args.tokens:
            fitted = recorded(loaded, args.calibration, tokens, FIT_QUERIES)
            maps = [score_axes(grouped(layer), layer[1]) for layer in fitted]
            write(data, recorded(loaded, args.evaluation, tokens, args.queries), maps, args.k)
            print(f"\n{tokens} tokens, k = {args.k}\n", flush=True)
            subprocess.run([str(program), str(data)], check=True)


if __name__ == "__main__":
    main()
