"""The options of `sparsify bench`, each defined once; see options.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OUTPUT

Lengths = Annotated[
    str | None,
    typer.Option(help="Tokens, e.g. 512,2k,8k (default: those of 512,2k,8k that the model has positions for)."),
]
NewTokens = Annotated[
    int, typer.Option(help="Tokens to write one by one, for models that generate; 0 times the prompt alone.")
]
Sequences = Annotated[int, typer.Option("--batch-size", "-b", help="Sequences at a time.")]
Repeats = Annotated[int, typer.Option(help="Rounds; in each every contender runs once.")]
BenchDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", "-d", help="Whose texts the model reads (default: the documentation that comes with Python)."
    ),
]
Eager = Annotated[
    bool,
    typer.Option(
        " /--no-eager", show_default=False, help="Leave out eager attention, which takes minutes on long texts."
    ),
]
Memory = Annotated[
    bool, typer.Option(" /--no-memory", show_default=False, help="Do not measure memory, which loads the model anew.")
]
Write = Annotated[
    bool,
    typer.Option(
        "--write",
        help="Put the break-even into the recipe: attention to fewer keys stays dense.",
        rich_help_panel=OUTPUT,
    ),
]
BenchOutput = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", "-o", help="Where the results go (default: RECIPE/bench/TIME).", rich_help_panel=OUTPUT
    ),
]
