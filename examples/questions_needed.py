"""How many questions a verdict needs: python examples/questions_needed.py

For a patched model that loses nothing on the whole, by how often its answers differ in being right (half of the flips
lose a right answer, half win one) and by the drop that is allowed. Questions are independent; of questions that share
passages more are needed. Prints a Markdown table.
"""

from __future__ import annotations

import argparse

from hf_sparsify.evaluation.verdict.interval import items_needed

MARGINS = (0.5, 1.0, 2.0, 5.0)
FLIPPED = (0, 5, 10, 20)  # percent


def needed(flipped: int, margin: float) -> int | None:
    """For points (100 times the score) of the smallest data with that share of flips, as many lost as won."""
    flips = 0 if flipped == 0 else 2 if flipped < 10 else 8
    count = 1 if flipped == 0 else flips * 100 // flipped
    values = [-100.0, 100.0] * (flips // 2) + [0.0] * (count - flips)
    return items_needed(values, [str(index) for index in range(count)], margin=-margin, support=(-100.0, 100.0))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| answers flipped | " + " | ".join(f"{margin} points" for margin in MARGINS) + " |")
    print("|---|" + "---|" * len(MARGINS))
    for flipped in FLIPPED:
        print(f"| {flipped} % | " + " | ".join(f"{needed(flipped, margin):,}" for margin in MARGINS) + " |")
