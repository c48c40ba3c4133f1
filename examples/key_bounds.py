"""Could a kernel leave out blocks of scores that bounds of their keys show to be below the threshold?

    python examples/key_bounds.py models/SmolLM2-135M-Instruct --text book.txt

For every head of a causal model the threshold is the one that keeps a tenth of the scores of long rows. The table says
which share of blocks (one row, or as many rows as a block has keys) has nothing to keep, and for which share a bound
proves it: "ball" by a block's mean key and the largest distance from it (q . c + |q| r), "box" by the lowest and
highest of its keys along each dimension (as in Quest, Tang et al. 2024, arXiv 2406.10774).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

KINDS = ("nothing to keep", "ball", "box")


def record(model: nn.Module, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The scaled queries [H, n, D] and the keys [G, n, D] of every layer."""
    seen = []

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **others: Any) -> Any:
        seen.append((query[0] * others["scaling"], key[0].clone()))
        return sdpa_attention_forward(module, query, key, value, mask, **others)

    AttentionInterface.register("recording", attend)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model.set_attn_implementation("recording")
    with torch.no_grad():
        model(ids)
    return seen


def count(query: Tensor, key: Tensor, size: int, keep: float, found: Counter[str]) -> None:
    """Adds what is found for one head, query and key [n, D], with n a multiple of size."""
    n = len(key)
    blocks = key.view(n // size, size, -1)
    scores, rows = query @ key.T, torch.arange(n)
    visible = torch.ones(n, n, dtype=torch.bool).tril()
    theta = torch.stack([scores[row, : row + 1].quantile(1 - keep) for row in range(n // 2, n, 97)]).mean()
    centres = blocks.mean(1)
    radii = (blocks - centres[:, None]).norm(dim=-1).amax(-1)
    bounds = (
        scores.masked_fill(~visible, -torch.inf).view(n, -1, size).amax(-1),
        query @ centres.T + query.norm(dim=-1, keepdim=True) * radii,
        query.clamp(min=0) @ blocks.amax(1).T + query.clamp(max=0) @ blocks.amin(1).T,
    )
    seen = rows[:, None] // size >= torch.arange(n // size)
    found["kept"] += int(((scores > theta) & visible).sum())
    found["scores"] += int(visible.sum())
    found["blocks"] += int(seen.sum())
    found["tiles"] += int(seen.view(-1, size, n // size).any(1).sum())
    for kind, bound in zip(KINDS, bounds, strict=True):
        below = bound <= theta
        found[f"blocks, {kind}"] += int((below & seen).sum())
        found[f"tiles, {kind}"] += int(((below | ~seen).view(-1, size, n // size).all(1) & seen[::size]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a causal language model that transformers can load")
    parser.add_argument("--text", type=Path, required=True, help="a file of ordinary text")
    parser.add_argument("--tokens", type=int, default=4096, help="read at most so many")
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 16], help="keys in a block")
    parser.add_argument("--keep", type=float, default=0.1, help="share of the scores to keep")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(args.model)(args.text.read_text("utf-8"), return_tensors="pt").input_ids
    length = min(args.tokens, ids.shape[1]) // max(args.blocks) * max(args.blocks)
    layers = record(model, ids[:, :length])
    print(f"{length} tokens, {len(layers)} layers of {len(layers[0][0])} heads\n")
    print(f"| keys in a block | kept | of | {' | '.join(KINDS)} |\n|---|---|---|---|---|---|")
    for size in args.blocks:
        found: Counter[str] = Counter()
        for query, key in layers:
            for head, one in enumerate(query):
                count(one, key[head * len(key) // len(query)], size, args.keep, found)
        for of, name in (("blocks", "one row"), ("tiles", f"{size} rows")):
            shares = " | ".join(f"{100 * found[f'{of}, {kind}'] / found[of]:.1f} %" for kind in KINDS)
            print(f"| {size} | {100 * found['kept'] / found['scores']:.1f} % | {name} | {shares} |")


if __name__ == "__main__":
    main()
