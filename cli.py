"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import exit_codes, progress, results_console, say, set_up

if TYPE_CHECKING:
    from .commands.target import Target
    from .patcher.binding.loading import LoadOptions

app = typer.Typer(
    name="sparsify",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Patch pretrained Hugging Face models with training-free sparse attention, calibrate it on your own data, and "
    "measure what it costs in accuracy.",
    epilog="Start: [bold]sparsify patch demo-t5[/], then [bold]sparsify calibrate[/], then [bold]sparsify eval[/].",
)

LOADING, OUTPUT, METHOD = "How to load the model", "Output", "What to patch"

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=LOADING)]
Device = Annotated[str, typer.Option(help="auto, cpu, mps or cuda[:n].", rich_help_panel=LOADING)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", rich_help_panel=LOADING)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=LOADING)
]
GgufFile = Annotated[str | None, typer.Option(help="The GGUF file inside MODEL.", rich_help_panel=LOADING)]
MovedModel = Annotated[
    str | None, typer.Option("--model", help="Where the recipe's model is now, if it moved.", rich_help_panel=LOADING)
]
Seed = Annotated[int, typer.Option(help="Picks which questions are used.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what libraries log.", rich_help_panel=OUTPUT)]
K = Annotated[int | None, typer.Option("--k", help="Kept keys per row (default: 64).", rich_help_panel=METHOD)]
Keep = Annotated[
    float | None, typer.Option("--keep", help="Kept fraction of what a row sees, in (0, 1].", rich_help_panel=METHOD)
]
TargetArgument = Annotated[
    str | None, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a model (default: ./sparsified).")
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="squad, squad_v2, demo, a Hub name, or a JSON, JSONL or Parquet file in the SQuAD schema.",
    ),
]
Split = Annotated[str | None, typer.Option(help="The split of a named data set.")]


@app.command(epilog="Example: sparsify patch HuggingFaceTB/SmolLM2-135M-Instruct --k 64 --skip-layers 0,1")
@exit_codes
def patch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub name, local folder, or demo-t5.")],
    attention: Annotated[str, typer.Option(help="top-k, top-theta or none.", rich_help_panel=METHOD)] = "top-k",
    k: K = None,
    keep: Keep = None,
    layers: Annotated[str | None, typer.Option(help="Only these, e.g. 2-11 or 0,4-7.", rich_help_panel=METHOD)] = None,
    skip_layers: Annotated[str | None, typer.Option(help="Not these.", rich_help_panel=METHOD)] = None,
    kind: Annotated[str | None, typer.Option(help="Only self or cross.", rich_help_panel=METHOD)] = None,
    stack: Annotated[str | None, typer.Option(help="Only encoder or decoder.", rich_help_panel=METHOD)] = None,
    protect_first: Annotated[
        int, typer.Option(help="First keys of a row that are always kept, within k.", rich_help_panel=METHOD)
    ] = 0,
    protect_recent: Annotated[
        int, typer.Option(help="Last keys of a causal row that are always kept, within k.", rich_help_panel=METHOD)
    ] = 0,
    output: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Where the recipe goes.", rich_help_panel=OUTPUT)
    ] = Path("sparsified"),
    force: Annotated[bool, typer.Option("--force", help="Replace another recipe.", rich_help_panel=OUTPUT)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and show only.", rich_help_panel=OUTPUT)] = False,
    verify: Annotated[bool, typer.Option(help="Prove the patch before writing.", rich_help_panel=OUTPUT)] = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    seed: Annotated[int, typer.Option(hidden=True)] = 0,
    trust_remote_code: TrustRemoteCode = False,
    gguf_file: GgufFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Plan sparse attention for MODEL, prove on the loaded model that it works, and write a recipe.

    The weights are not copied and the model is not changed: a recipe is a small directory that the other commands and
    hf_sparsify.load apply.
    """
    from .commands import patch as command
    from .commands.report import patch_report

    method = command.make_method(attention, k, keep, protect_first, protect_recent)
    loaded = _load(model, _options(dtype, device, revision, trust_remote_code, gguf_file), quiet, verbose)
    planned = command.plan_recipe(loaded, method, layers=layers, skip_layers=skip_layers, kind=kind, stack=stack)
    if not dry_run:
        command.check_output(planned.recipe, output, force=force)
    if verify and not dry_run:
        say("proving the patch on the loaded model ...", quiet=quiet)
    checks = command.prove_recipe(loaded, planned.recipe) if verify and not dry_run else []
    written = None if dry_run else command.write_recipe(planned.recipe, output)
    if not quiet:
        results_console().print(patch_report(planned, loaded, checks, written))


@app.command(epilog="Example: sparsify calibrate --dataset my-questions.jsonl --samples 128")
@exit_codes
def calibrate(
    target: TargetArgument = None,
    dataset: Dataset = None,
    split: Split = None,
    samples: Annotated[int, typer.Option(help="How many questions to use.")] = 128,
    k: K = None,
    keep: Keep = None,
    output: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Another place for the recipe.", rich_help_panel=OUTPUT),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another recipe there.", rich_help_panel=OUTPUT)
    ] = False,
    seed: Seed = 0,
    model: MovedModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf_file: GgufFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit top-theta thresholds on questions with their answers; the recipe's modules become top-theta at the same k.

    Uses the train split of squad (of demo for demo models) unless told otherwise. The plan from before is kept in the
    recipe: `sparsify eval --as-top-k` runs it.
    """
    from .commands import patch as patch_command
    from .commands.calibrate import calibrate_target
    from .commands.report import calibration_report
    from .patcher.recipe import check_writable

    opened = _open(target, _options(dtype, device, revision, trust_remote_code, gguf_file), model, quiet, verbose)
    directory = output or opened.directory or Path("sparsified")
    in_place = opened.directory is not None and directory.resolve() == opened.directory.resolve()
    check_writable(directory, force=force or in_place)
    questions = _questions(dataset, split, opened, "train")
    with progress(min(max(samples, 1), len(questions)), "calibrating", quiet=quiet) as advance:
        calibrated = calibrate_target(opened, questions, samples=samples, seed=seed, k=k, keep=keep, advance=advance)
    patch_command.write_recipe(calibrated.recipe, directory)
    if not quiet:
        results_console().print(calibration_report(calibrated, directory))


@app.command(name="eval", epilog="Example: sparsify eval --dataset squad --limit 200")
@exit_codes
def evaluate(
    target: TargetArgument = None,
    dataset: Dataset = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option("--limit", "-L", help="Random subset of so many questions.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Questions at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    as_top_k: Annotated[bool, typer.Option("--as-top-k", help="Run the plan from before calibration.")] = False,
    by_module: Annotated[
        bool, typer.Option("--by-module", help="Also what each module kept.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The results as JSON on stdout.", rich_help_panel=OUTPUT)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="New directory for the results.", rich_help_panel=OUTPUT),
    ] = None,
    seed: Seed = 0,
    model: MovedModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf_file: GgufFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Answer the same questions with the unpatched and the patched model, and say what changed.

    Uses the validation split of squad (of demo for demo models) unless told otherwise. Writes results.json and
    predictions.jsonl to RECIPE/eval/RUN.
    """
    from .commands.evaluate import evaluate_target
    from .evaluation.report import results_tables

    opened = _open(target, _options(dtype, device, revision, trust_remote_code, gguf_file), model, quiet, verbose)
    questions = _questions(dataset, split, opened, "validation")
    total = len(questions) if limit is None else min(max(limit, 1), len(questions))
    with progress(total, "evaluating", quiet=quiet) as advance:
        results, directory = evaluate_target(
            opened,
            questions,
            limit=limit,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            as_top_k=as_top_k,
            output=output,
            advance=advance,
        )
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        results_console().print(results_tables(results, by_module=by_module))
    say(f"wrote {directory}", quiet=quiet)


@app.command(epilog='Example: sparsify generate ./sparsified "What is the capital of France?"')
@exit_codes
def generate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a model.")],
    prompt: Annotated[str, typer.Argument(help="What to answer; a chat model gets it as a user's turn.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.", rich_help_panel=OUTPUT)] = False,
    model: MovedModel = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    seed: Annotated[int, typer.Option(hidden=True)] = 0,
    trust_remote_code: TrustRemoteCode = False,
    gguf_file: GgufFile = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the dense and the patched answer to one prompt side by side (greedy)."""
    from .commands.generate import generate_both
    from .commands.report import answers_report

    opened = _open(target, _options(dtype, device, revision, trust_remote_code, gguf_file), model, quiet, verbose)
    answers = generate_both(opened, prompt, max_new_tokens)
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        results_console().print(answers_report(answers))


@app.command()
@exit_codes
def methods() -> None:
    """List the sparse methods, each with its paper."""
    from .commands.report import methods_report

    results_console().print(methods_report())


@app.command()
@exit_codes
def env() -> None:
    """Print versions and hardware, ready to paste into a bug report."""
    from .environment import describe_environment

    for name, value in describe_environment().items():
        print(f"{name}: {value}")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"hf-sparsify {version('hf-sparsify')}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _options(
    dtype: str, device: str, revision: str | None, trust_remote_code: bool, gguf_file: str | None
) -> LoadOptions:
    from .patcher.binding.loading import LoadOptions

    return LoadOptions(dtype, device, revision, trust_remote_code, gguf_file)


def _load(model: str, options: LoadOptions, quiet: bool, verbose: bool) -> Any:
    from .patcher.binding.loading import load_model

    set_up(quiet=quiet, verbose=verbose)
    say(f"loading {model} ...", quiet=quiet)
    loaded = load_model(model, options)
    _hint(loaded.model, quiet)
    return loaded


def _open(argument: str | None, options: LoadOptions, model: str | None, quiet: bool, verbose: bool) -> Target:
    from .commands.target import open_target

    set_up(quiet=quiet, verbose=verbose)
    say(f"loading {argument or './sparsified'} ...", quiet=quiet)
    opened = open_target(argument, options, model=model)
    _hint(opened.loaded.model, quiet)
    if opened.directory is None:
        say("no recipe named: starting from top-k attention with k = 64 on every layer", quiet=quiet)
    return opened


def _hint(model: Any, quiet: bool) -> None:
    if model.device.type == "cpu" and str(model.dtype) == "torch.bfloat16":
        say("hint: on a CPU, --dtype float32 is faster than bfloat16 for prompts", quiet=quiet)


def _questions(dataset: str | None, split: str | None, target: Target, default_split: str) -> Any:
    from .evaluation.sources import load_questions

    return load_questions(dataset or ("demo" if target.is_demo else "squad"), split, default_split=default_split)


def main() -> None:
    """The console command. `_` is accepted for `-` in option names."""
    arguments = []
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition("=")
        arguments.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    app(args=arguments)


if __name__ == "__main__":
    main()
