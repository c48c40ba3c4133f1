"""The options of the command line, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LOADING, OUTPUT, METHOD = "How to load the model", "Output", "What to patch"
VERDICT, REFIT = "What decides", "From a calibration"
FITTING = "How thresholds are fitted"

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=LOADING)]
Device = Annotated[str, typer.Option(help="auto, cpu, mps or cuda[:n].", rich_help_panel=LOADING)]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto spreads the model over all devices (Accelerate).", rich_help_panel=LOADING)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", rich_help_panel=LOADING)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=LOADING)
]
GgufFile = Annotated[str | None, typer.Option(help="The GGUF file inside MODEL.", rich_help_panel=LOADING)]
MovedModel = Annotated[
    str | None, typer.Option("--model", help="Where the recipe's model is now, if it moved.", rich_help_panel=LOADING)
]
Seed = Annotated[int, typer.Option(help="Picks which items are used.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also what libraries log, and which kernels ran.", rich_help_panel=OUTPUT),
]
Attention = Annotated[
    str, typer.Option(help="top-k, top-theta, clustered, clustered-plain or none.", rich_help_panel=METHOD)
]
K = Annotated[
    int | None,
    typer.Option("--k", help="Kept keys per row (default: 64), refined keys per cluster (32).", rich_help_panel=METHOD),
]
Keep = Annotated[
    float | None, typer.Option("--keep", help="Kept fraction of what a row sees, in (0, 1].", rich_help_panel=METHOD)
]
OtherK = Annotated[int | None, typer.Option("--k", help="Another k than the recipe's.", rich_help_panel=METHOD)]
OtherKeep = Annotated[
    float | None, typer.Option("--keep", help="Another kept fraction than the recipe's.", rich_help_panel=METHOD)
]
TargetArgument = Annotated[
    str | None, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a model (default: ./sparsified).")
]
RecipeArgument = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe (default: ./sparsified).")]
Targets = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE|MODEL", help="Recipes for one model, or a model (default: ./sparsified)."),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="A name that `sparsify datasets` lists, a Hub name, a file (JSON, JSONL, CSV, TSV, Parquet or text), or "
        "NAME=FILE for a file in a listed schema.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="What the data must be for: qa, multiple-choice, classification, text or asr (default: as the data are)."
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", "-L", help="Random subset of so many items; with --harness the first ones.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Items at a time.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Longest answer, for models that generate (default: 32; of speech: the model's own).")
]
MaxInputTokens = Annotated[int | None, typer.Option(help="Cut longer prompts at their end (encoder-decoder models).")]
PromptTemplate = Annotated[
    Path | None,
    typer.Option(help="A text file with {context}, {question} and the like in place of the built-in prompt."),
]
Shots = Annotated[int, typer.Option(help="How many answered examples precede every question.")]
ShotsFrom = Annotated[str | None, typer.Option(help="Where the examples are drawn from (default: the train split).")]
Distractors = Annotated[int, typer.Option(help="How many other passages each passage is hidden among.")]
AsTopK = Annotated[bool, typer.Option("--as-top-k", help="Run the plan from before calibration.")]
Harness = Annotated[
    str | None,
    typer.Option(
        metavar="<tasks>", help="Instead: tasks of lm-evaluation-harness, names or YAML files separated by commas."
    ),
]
MaxDrop = Annotated[
    float, typer.Option(help="Points of the data set's metric that may be lost.", rich_help_panel=VERDICT)
]
MinRecovery = Annotated[
    float | None,
    typer.Option(help="Instead: the share of the dense score that must remain, e.g. 0.99.", rich_help_panel=VERDICT),
]
RequireConclusion = Annotated[
    bool,
    typer.Option("--require-conclusion", help="Exit code 5 if the verdict is inconclusive.", rich_help_panel=VERDICT),
]
ByModule = Annotated[bool, typer.Option("--by-module", help="Also what each module kept.", rich_help_panel=OUTPUT)]
Cache = Annotated[
    bool,
    typer.Option(
        " /--no-cache",
        show_default=False,
        help="Use no cached answers of the dense model, and run again what has been run to its end.",
        rich_help_panel=OUTPUT,
    ),
]
Split = Annotated[str | None, typer.Option(help="The split of a named data set.")]
Layers = Annotated[str | None, typer.Option(help="Only these, e.g. 2-11 or 0,4-7.", rich_help_panel=METHOD)]
SkipLayers = Annotated[
    str | None,
    typer.Option(
        help="Not these; none patches all (top-k and top-theta leave layers 0-1 dense in models with more than 8).",
        rich_help_panel=METHOD,
    ),
]
Kind = Annotated[str | None, typer.Option(help="Only self or cross attention.", rich_help_panel=METHOD)]
Stack = Annotated[str | None, typer.Option(help="Only encoder or decoder.", rich_help_panel=METHOD)]
ProtectFirst = Annotated[
    int, typer.Option(help="First keys of a row that are always kept, within k.", rich_help_panel=METHOD)
]
ProtectRecent = Annotated[
    int, typer.Option(help="Last keys of a causal row that are always kept, within k.", rich_help_panel=METHOD)
]
MinKeep = Annotated[
    int | None, typer.Option(help="Top-theta: a row keeps at least so many (default: 1).", rich_help_panel=METHOD)
]
Compensation = Annotated[
    str | None,
    typer.Option(
        help="The mass of dropped keys: none renormalises, sdc keeps it in the denominator, sdc+vmc gives it to the "
        "mean of the values (default: sdc+vmc).",
        rich_help_panel=METHOD,
    ),
]
VMean = Annotated[
    str | None,
    typer.Option(help="With sdc+vmc: the mean of the visible (default) or dropped values.", rich_help_panel=METHOD),
]
Placement = Annotated[
    str | None,
    typer.Option(
        help="Top-theta compares weights (post-softmax, default), scores less the row's highest (max-relative) or "
        "scores (pre-softmax).",
        rich_help_panel=METHOD,
    ),
]
Denominator = Annotated[
    str | None,
    typer.Option(
        help="Where sdc gets the dropped mass from: exact (default) or rounded (decoding reads keys in 8 bits: faster, "
        "not quite exact).",
        rich_help_panel=METHOD,
    ),
]
Thresholds = Annotated[
    Path | None,
    typer.Option(
        metavar="<recipe>",
        help="Instead: the plan and the calibration of this recipe, with thresholds for another --k or --keep, "
        "without calibrating again. MODEL may be left out.",
        rich_help_panel=REFIT,
    ),
]
RefitDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="Items on which to measure what is kept (default: those of the calibration).",
        rich_help_panel=REFIT,
    ),
]
RefitSplit = Annotated[str | None, typer.Option("--split", help="Their split.", rich_help_panel=REFIT)]
Samples = Annotated[int, typer.Option(help="How many items to use.")]
OtherCompensation = Annotated[
    str | None,
    typer.Option("--compensation", help="none, sdc or sdc+vmc instead of the recipe's.", rich_help_panel=METHOD),
]
OtherPlacement = Annotated[
    str | None,
    typer.Option(
        "--placement",
        help="Compare with thresholds weights (post-softmax), scores less the row's highest (max-relative) or scores "
        "(pre-softmax); default: the recipe's, else post-softmax.",
        rich_help_panel=FITTING,
    ),
]
Estimator = Annotated[
    str,
    typer.Option(
        help="count-matched keeps k keys per row on average; mean is the paper's mean + alpha x standard deviation of "
        "what exact top-k drops first.",
        rich_help_panel=FITTING,
    ),
]
Alpha = Annotated[float, typer.Option(help="Of the mean estimator; more keeps fewer.", rich_help_panel=FITTING)]
Activations = Annotated[
    str,
    typer.Option(
        help="sparse: layers run exact top-k meanwhile, so that later ones see what they will see; or dense.",
        rich_help_panel=FITTING,
    ),
]
OtherDenominator = Annotated[
    str | None,
    typer.Option(
        "--denominator",
        help="Where sdc gets the dropped mass from: exact, exp-threshold (an upper bound), offline (the mean of "
        "calibration) or rounded (decoding reads keys in 8 bits); default: the recipe's, else exact.",
        rich_help_panel=FITTING,
    ),
]
Clusters = Annotated[
    int | None, typer.Option(help="Clusters of queries per head (default: 100).", rich_help_panel=METHOD)
]
Clustering = Annotated[
    str | None,
    typer.Option(
        help="How queries are clustered: by the distance of their score rows (rows, default), or by that of their hash "
        "codes, as in the paper (hamming).",
        rich_help_panel=METHOD,
    ),
]
MinLength = Annotated[
    int | None,
    typer.Option(
        help="Top-k and top-theta: rows that see fewer keys stay dense. Clustered: shorter sequences do.",
        rich_help_panel=METHOD,
    ),
]
Ffn = Annotated[str, typer.Option(help="Feed-forward layers: top-k or none.", rich_help_panel=METHOD)]
FfnK = Annotated[int | None, typer.Option("--ffn-k", help="Kept activations per token.", rich_help_panel=METHOD)]
FfnKeep = Annotated[
    float | None,
    typer.Option("--ffn-keep", help="Kept fraction of d_ff, in (0, 1] (default: 0.5).", rich_help_panel=METHOD),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="<rule>",
        help="PATTERN=METHOD,OPTION=VALUE,...: another method for the modules that match, by name or by 're:' and a "
        "regular expression for the whole name; none leaves them dense. May be repeated. "
        "E.g. `'re:.*encoder.*=clustered,clusters=50'`",
        rich_help_panel=METHOD,
    ),
]
RecipeOutput = Annotated[
    Path | None,
    typer.Option("--output-dir", "-o", help="The recipe's directory (default: ./sparsified).", rich_help_panel=OUTPUT),
]
ResultsOutput = Annotated[
    Path | None,
    typer.Option("--output-dir", "-o", help="Where the results go (default: RECIPE/eval/RUN).", rich_help_panel=OUTPUT),
]
SaveModel = Annotated[
    bool,
    typer.Option("--save-model", help="Write the dense model into the recipe too.", rich_help_panel=OUTPUT),
]
Force = Annotated[bool, typer.Option("--force", help="Replace another recipe.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.", rich_help_panel=OUTPUT)]
HiddenSeed = Annotated[int, typer.Option("--seed", hidden=True)]
InspectLengths = Annotated[str | None, typer.Option("--lengths", help="Tokens, e.g. 512,2k,8k (default: 512,4k,32k).")]
EveryModule = Annotated[
    bool, typer.Option("--modules", help="A line for every module, by its full name.", rich_help_panel=OUTPUT)
]
Reported = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DIR", help="What sweep, tune, eval or bench wrote (default: ./sparsified)."),
]
ReportOutput = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="<file>", help="The page (default: DIR/report.html).", rich_help_panel=OUTPUT
    ),
]
