"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .cli_comparisons import bench, evaluate, generate
from .cli_recipes import calibrate, inspect, patch, push, validate
from .cli_reports import plot, report
from .cli_searches import sweep, tune
from .terminal import exit_codes, results_console

app = typer.Typer(
    name="sparsify",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Patch pretrained Hugging Face models with training-free sparse attention, calibrate it on your own data, and "
    "measure what it costs in accuracy.",
    epilog="Start with `sparsify patch demo-t5`, then `sparsify calibrate`, then `sparsify eval`.",
)

for name, command, example in (
    ("patch", patch, "sparsify patch HuggingFaceTB/SmolLM2-135M-Instruct --k 64 --skip-layers 0,1"),
    ("inspect", inspect, "sparsify inspect meta-llama/Llama-3.1-8B --lengths 4k,128k"),
    ("validate", validate, "sparsify validate ./sparsified"),
    ("calibrate", calibrate, "sparsify calibrate --dataset my-questions.jsonl --samples 128"),
    ("eval", evaluate, "sparsify eval --dataset squad --limit 400 --max-drop 2"),
    ("sweep", sweep, "sparsify sweep demo-t5 --methods top-k,top-theta --keep 1.0,0.5,0.25,0.1,0.05 --max-drop 2"),
    ("tune", tune, "sparsify tune demo-t5 --max-drop 8"),
    ("bench", bench, "sparsify bench ./sparsified --lengths 512,2k,8k --new-tokens 64"),
    ("report", report, "sparsify report ./sparsified -o report.html"),
    ("plot", plot, 'sparsify plot ./sparsified --prompt "What is the capital of France?"'),
    ("generate", generate, 'sparsify generate ./sparsified "What is the capital of France?"'),
    ("push", push, "sparsify push ./sparsified my-name/my-recipe --private"),
):
    app.command(name, epilog=f"Example: {example}")(command)


@app.command()
@exit_codes
def methods() -> None:
    """List the sparse methods, each with its paper."""
    from .commands.report import methods_report

    results_console().print(methods_report())


@app.command()
@exit_codes
def datasets() -> None:
    """List the data sets that `--dataset` knows by name, each with its task and the metric that decides."""
    from .commands.report import datasets_report

    results_console().print(datasets_report())


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


def main() -> None:
    """The console command. `_` is accepted for `-` in option names."""
    arguments = []
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition("=")
        arguments.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    app(args=arguments)


if __name__ == "__main__":
    main()
