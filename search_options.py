"""The options of the commands that try many recipes, each defined once; see options.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import FITTING, METHOD, OUTPUT, VERDICT

GRID, TIMES, TUNING = "The grid", "Times", "What is tuned"

ItemLimit = Annotated[int | None, typer.Option("--limit", "-L", help="Random subset of so many items.")]
Methods = Annotated[
    str,
    typer.Option(
        metavar="<list>",
        help="top-k, top-theta, clustered, clustered-plain or none (attention stays dense), separated by commas.",
        rich_help_panel=GRID,
    ),
]
Keeps = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="<list>",
        help="Kept fractions for top-k and top-theta (default: 1.0,0.5,0.25,0.1,0.05); 1.0 is the dense model.",
        rich_help_panel=GRID,
    ),
]
Ks = Annotated[
    str | None, typer.Option("--k", metavar="<list>", help="Instead: kept keys per row.", rich_help_panel=GRID)
]
ClusterCounts = Annotated[
    str | None,
    typer.Option(
        "--clusters", metavar="<list>", help="For clustered attention (default: 200,100,50,25).", rich_help_panel=GRID
    ),
]
FfnKeeps = Annotated[
    str | None,
    typer.Option(
        "--ffn-keep",
        metavar="<list>",
        help="Also every cell with top-k feed-forward layers at these kept fractions; 1.0 leaves them dense.",
        rich_help_panel=GRID,
    ),
]
FfnKs = Annotated[
    str | None,
    typer.Option("--ffn-k", metavar="<list>", help="Instead: kept activations per token.", rich_help_panel=GRID),
]
CalibrationSamples = Annotated[
    int, typer.Option("--samples", help="Items that top-theta is calibrated on.", rich_help_panel=FITTING)
]
CalibrateOn = Annotated[
    str | None,
    typer.Option(
        metavar="<dataset>",
        help="Where they come from (default: the train split of the data set).",
        rich_help_panel=FITTING,
    ),
]
TimeCells = Annotated[
    bool, typer.Option("--bench", help="Also time every cell beside the dense model.", rich_help_panel=TIMES)
]
CellLengths = Annotated[
    str | None, typer.Option("--lengths", help="At so many tokens, as in `bench`.", rich_help_panel=TIMES)
]
SweepOutput = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", "-o", help="The sweep's directory (default: ./sparsified-sweep).", rich_help_panel=OUTPUT
    ),
]
ForceSweep = Annotated[bool, typer.Option("--force", help="Replace another sweep.", rich_help_panel=OUTPUT)]
RequireDecision = Annotated[
    bool,
    typer.Option(
        "--require-conclusion",
        help="Exit code 5 if no sparse cell passes and not all that were tested fail.",
        rich_help_panel=VERDICT,
    ),
]
Goal = Annotated[
    str,
    typer.Option(
        help="What is to be saved: kept (attention elements), v-rows (V rows read in decoding) or latency (time in "
        "the modules on a prompt).",
        rich_help_panel=TUNING,
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="<fractions>",
        help="Uniform keep rates whose budgets are tried (default: 0.5,0.25,0.15,0.1,0.05,0.03).",
        rich_help_panel=TUNING,
    ),
]
TuneSamples = Annotated[int, typer.Option("--samples", help="How many items tuning looks at.", rich_help_panel=TUNING)]
TuneOn = Annotated[
    str | None,
    typer.Option(
        "--calibrate-on",
        metavar="<data>",
        help="What tuning looks at (default: the train split of the data set).",
        rich_help_panel=TUNING,
    ),
]
TunedAttention = Annotated[
    str,
    typer.Option(
        "--attention", help="top-k, top-theta (calibrated on the same items) or none.", rich_help_panel=METHOD
    ),
]
TunedOutput = Annotated[
    Path | None,
    typer.Option(
        "--output-dir", "-o", help="The recipe's directory (default: ./sparsified-tuned).", rich_help_panel=OUTPUT
    ),
]
ForceTune = Annotated[bool, typer.Option("--force", help="Replace another recipe or tuning.", rich_help_panel=OUTPUT)]
