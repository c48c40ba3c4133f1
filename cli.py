"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .opening import items_of, load, open_target, open_targets, start
from .option_groups import (
    GATHERED,
    takes_asking,
    takes_benching,
    takes_calibrating,
    takes_loading,
    takes_patching,
    typed,
)
from .terminal import command_line, exit_codes, progress, results_console, resumable, say

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


@app.command(epilog="Example: sparsify patch HuggingFaceTB/SmolLM2-135M-Instruct --k 64 --skip-layers 0,1")
@exit_codes
@takes_loading
@takes_patching
def patch(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Hub name, folder, demo-bert, demo-llama or demo-t5.")
    ] = None,
    patching: Any = GATHERED,
    thresholds: o.Thresholds = None,
    dataset: o.RefitDataset = None,
    split: o.RefitSplit = None,
    output: o.RecipeOutput = None,
    force: o.Force = False,
    save_model: o.SaveModel = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and show only.", rich_help_panel=o.OUTPUT)] = False,
    verify: Annotated[bool, typer.Option(help="Prove the patch before writing.", rich_help_panel=o.OUTPUT)] = True,
    seed: o.HiddenSeed = 0,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Plan sparse attention and feed-forward layers for MODEL, prove the patch on the loaded model, and write a recipe.

    The weights are not copied and the model is not changed: a recipe is a small directory that the other commands and
    hf_sparsify.load apply. With --thresholds the recipe is a calibrated one at another k.
    """
    from .commands import patch as command
    from .commands import refit
    from .commands.own_model import check_model_place
    from .commands.report import patch_report
    from .patcher.recipe import DEFAULT_RECIPE

    output = output or Path(DEFAULT_RECIPE)
    if thresholds is None:
        name, wanted = command.require_model(model, dataset, split), command.make_wanted(**patching)
        start(name, quiet, verbose)
        loaded = load(name, loading, quiet)
        planned = command.plan_recipe(loaded, wanted)
    else:
        k, keep = patching["k"], patching["keep"]
        refit.check_options(typed(context, o.METHOD), k, keep, dataset, split)
        if not dry_run:
            refit.check_output(thresholds, output, force=force)
        source = refit.read_source(thresholds, model)
        start(str(thresholds), quiet, verbose)
        items = items_of(dataset, split, "train") if dataset is not None else None
        opened = open_target(str(thresholds), loading, model, quiet)
        loaded, planned = opened.loaded, refit.refit(source, opened, k, keep)
    if not dry_run:
        command.check_output(planned.recipe, output, force=force)
        check_model_place(output, loaded, save_model=save_model, force=force)
    if verify and not dry_run:
        say("proving the patch on the loaded model ...", quiet=quiet)
    checks = command.prove_recipe(loaded, planned.recipe) if verify and not dry_run else []
    if thresholds is not None:
        planned = refit.with_kept(planned, source, loaded, items)
    written = None if dry_run else command.save(planned, output, loaded if save_model else None)
    if dry_run or not quiet:
        results_console().print(patch_report(planned, loaded, checks, written))


@app.command(epilog="Example: sparsify validate ./sparsified")
@exit_codes
@takes_loading
def validate(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe (default: ./sparsified).")] = None,
    verify: Annotated[bool, typer.Option(help="Also prove it on the loaded model.", rich_help_panel=o.OUTPUT)] = True,
    model: o.MovedModel = None,
    seed: o.HiddenSeed = 0,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a recipe, for example one edited by hand.

    First its files, then every module of its plan on its model, then the proof of patch. Nothing is written.
    """
    from .commands.patch import prove_recipe
    from .commands.report import validation_report
    from .commands.validate import check_target, read_recipe

    directory = read_recipe(recipe)
    start(str(directory), quiet, verbose)
    opened = open_target(str(directory), loading, model, quiet)
    check_target(opened)
    if verify:
        say("proving the patch on the loaded model ...", quiet=quiet)
    checks = prove_recipe(opened.loaded, opened.recipe) if verify else []
    if not quiet:
        results_console().print(validation_report(opened, checks))


@app.command(epilog="Example: sparsify calibrate --dataset my-questions.jsonl --samples 128")
@exit_codes
@takes_loading
@takes_calibrating
def calibrate(
    target: o.TargetArgument = None,
    dataset: o.Dataset = None,
    split: o.Split = None,
    asked: Any = GATHERED,
    output: o.RecipeOutput = None,
    force: o.Force = False,
    model: o.MovedModel = None,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Fit top-theta thresholds on items with their answers; the recipe's top-k modules become top-theta, same k.

    Uses the train split of squad (of demo for demo models) unless told otherwise. The plan from before is kept in the
    recipe: `sparsify eval --as-top-k` runs it. The same command goes on where it was stopped. `sparsify patch
    --thresholds RECIPE --k N` reads thresholds for another k from what was counted.
    """
    from .calibration.histogram_file import save_calibrated
    from .commands.calibrate import calibrate_target, check_options
    from .commands.own_model import check_model_place
    from .commands.report import calibration_report
    from .files import same_place
    from .patcher.recipe import DEFAULT_RECIPE, check_writable
    from .processes import Processes

    start(target, quiet, verbose)
    check_options(target, asked)
    given = items_of(dataset, split, "train") if dataset is not None else None
    opened = open_target(target, loading, model, quiet)
    directory = output or opened.directory or Path(DEFAULT_RECIPE)
    in_place = opened.directory is not None and same_place(directory, opened.directory)
    check_writable(directory, force=force or in_place)
    check_model_place(directory, opened.loaded, save_model=False, force=force)
    items = given or items_of(opened.default_dataset, split, "train")
    total, processes = min(asked.samples, len(items)), Processes.join()
    with resumable(), progress(total, "calibrating", quiet=quiet, processes=processes.count) as advance:
        calibrated = calibrate_target(
            opened,
            items,
            asked,
            directory=directory,
            processes=processes,
            advance=advance,
            tell=lambda text: say(text, quiet=quiet),
        )
    if not processes.is_main:
        return
    save_calibrated(calibrated.recipe, calibrated.histograms, directory)
    calibrated.checkpoint.remove()
    if not quiet:
        results_console().print(calibration_report(calibrated, directory))


# Of tables with long names or many columns; on a narrower terminal its own line breaks beat cut words.
WIDE = 120


@app.command(name="eval", epilog="Example: sparsify eval --dataset squad --limit 400 --max-drop 2")
@exit_codes
@takes_loading
@takes_asking
def evaluate(
    targets: o.Targets = None,
    dataset: o.Dataset = None,
    split: o.Split = None,
    asking: Any = GATHERED,
    harness: o.Harness = None,
    require_conclusion: o.RequireConclusion = False,
    by_module: o.ByModule = False,
    as_json: o.Json = False,
    output: o.ResultsOutput = None,
    model: o.MovedModel = None,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Ask the unpatched and the patched model the same, and judge the difference: PASS, FAIL or INCONCLUSIVE.

    A model that generates writes answers or chooses among them, one with a head for question answering or
    classification uses that, and an encoder finds the question's passage; `sparsify datasets` lists what can be asked.

    Uses the validation split of squad (of demo for demo models) unless told otherwise. Writes results.json and
    predictions.jsonl to RECIPE/eval/RUN; the same command goes on where it was stopped. Exit code 3 is FAIL.
    """
    from .commands.evaluate import as_plain, check_output, evaluate_targets, exit_code
    from .commands.report import evaluation_report
    from .processes import Processes

    check_output(output, targets or [])
    start(targets[0] if targets else None, quiet, verbose)
    if harness is not None:
        from .commands.harness import evaluate_harness, open_harness

        tasks = open_harness(harness, asking, dataset=dataset, split=split, trusted=loading.trust_remote_code)
        opened = open_targets(targets or [], loading, model, quiet)
        with progress(tasks.total(len(opened)), "evaluating", quiet=quiet) as advance:
            outcomes = evaluate_harness(opened, tasks, asking, output=output, command=command_line(), advance=advance)
    else:
        given = items_of(dataset, split, "validation") if dataset is not None else None
        opened = open_targets(targets or [], loading, model, quiet)
        items = given or items_of(opened[0].default_dataset, split, "validation")
        total, processes = min(asking.limit or len(items), len(items)), Processes.join()
        with progress(total, "evaluating", quiet=quiet, processes=processes.count) as advance, resumable():
            outcomes = evaluate_targets(
                opened, items, asking, output=output, processes=processes, command=command_line(), advance=advance
            )
        if not processes.is_main:
            return
    if as_json:
        print(json.dumps(as_plain(outcomes), indent=2))
    else:
        results_console(at_least=WIDE if by_module else 0).print(evaluation_report(outcomes, by_module))
    for outcome in outcomes:
        done = "was there already, judged anew:" if outcome.was_there else "wrote"
        say(f"{done} {outcome.directory}", quiet=quiet)
    raise typer.Exit(exit_code(outcomes, require_conclusion=require_conclusion))


@app.command(epilog="Example: sparsify bench ./sparsified --lengths 512,2k,8k --new-tokens 64")
@exit_codes
@takes_loading
@takes_benching
def bench(
    target: o.TargetArgument = None,
    benching: Any = GATHERED,
    dataset: o.BenchDataset = None,
    split: o.Split = None,
    as_json: o.Json = False,
    output: o.BenchOutput = None,
    model: o.MovedModel = None,
    seed: o.HiddenSeed = 0,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Time the dense and the patched model on the same tokens, and say from which length on the patch pays.

    Prompt and generated tokens are timed apart, in one process, in turn; peak memory is measured in a process for each
    contender. Writes bench.json and a plot to RECIPE/bench/TIME.
    """
    from .benchmark.arms import Arms
    from .benchmark.report import bench_tables
    from .commands import bench as command

    command.check_output(output)
    start(target, quiet, verbose)
    items = items_of(dataset, split, "validation") if dataset is not None else None
    opened = open_target(target, loading, model, quiet)
    lengths = command.check_target(opened, benching)
    tokens = command.input_tokens(opened, items, benching, lengths[-1])
    arms = Arms(opened.loaded.model, command.recipe_to_measure(opened, benching), eager=benching.eager)
    job = command.make_job(target, model, loading, tokens, benching)
    with progress(command.passes(benching, lengths, arms), "timing", quiet=quiet) as advance:
        measured = command.bench(opened, arms, benching, lengths, tokens, job=job, advance=advance)
    text = dataset or "the Python documentation"
    done = command.finish(opened, benching, measured, text=text, command=command_line(), output=output)
    if as_json:
        print(json.dumps(done.results, indent=2))
    else:
        results_console(at_least=WIDE).print(bench_tables(done.results))
    for line in command.closing_lines(done):
        say(line, quiet=quiet)


@app.command(epilog='Example: sparsify generate ./sparsified "What is the capital of France?"')
@exit_codes
@takes_loading
def generate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a model.")],
    prompt: Annotated[str, typer.Argument(help="What to answer; a chat model gets it as a user's turn.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    as_json: o.Json = False,
    model: o.MovedModel = None,
    seed: o.HiddenSeed = 0,
    loading: Any = GATHERED,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Show the dense and the patched answer to one prompt side by side (greedy)."""
    from .commands.generate import generate_both
    from .commands.report import answers_report

    start(target, quiet, verbose)
    opened = open_target(target, loading, model, quiet)
    answers = generate_both(opened, prompt, max_new_tokens)
    if as_json:
        print(json.dumps(answers, indent=2))
    else:
        results_console().print(answers_report(answers))


@app.command(epilog="Example: sparsify push ./sparsified my-name/my-recipe --private")
@exit_codes
def push(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's directory.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Where on the Hugging Face Hub; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    quiet: o.Quiet = False,
) -> None:
    """Upload a recipe to the Hugging Face Hub, with a model card that holds its verdicts.

    The model goes along if the recipe holds it (`patch --save-model`); questions, predictions and results never do.
    """
    from .commands.push import push_to_hub

    say(f"pushing {recipe} ...", quiet=quiet)
    print(push_to_hub(recipe, repo, private=private or None))


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
