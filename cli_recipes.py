"""The commands that look at a model and make, check or publish a recipe: inspect, patch, validate, calibrate, push."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .opening import Opening, items_of
from .option_groups import GATHERED, takes_calibrating, takes_finding, takes_opening, takes_patching, typed
from .terminal import WIDE, exit_codes, results_console, resumable, say


@exit_codes
@takes_opening
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
    opening: Opening = GATHERED,
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
        opening.start(name)
        loaded = opening.load(name)
        planned = command.plan_recipe(loaded, wanted)
    else:
        k, keep = patching["k"], patching["keep"]
        refit.check_options(typed(context, o.METHOD), k, keep, dataset, split)
        if not dry_run:
            refit.check_output(thresholds, output, force=force)
        source = refit.read_source(thresholds, model)
        opening.start(str(thresholds))
        items = items_of(dataset, split, "train") if dataset is not None else None
        opened = replace(opening, model=model).target(str(thresholds))
        loaded, planned = opened.loaded, refit.refit(source, opened, k, keep)
    if not dry_run:
        command.check_output(planned.recipe, output, force=force)
        check_model_place(output, loaded, save_model=save_model, force=force)
    if verify and not dry_run:
        opening.say("proving the patch on the loaded model ...")
    checks = command.prove_recipe(loaded, planned.recipe) if verify and not dry_run else []
    if thresholds is not None:
        planned = refit.with_kept(planned, source, loaded, items)
    written = None if dry_run else command.save(planned, output, loaded if save_model else None)
    if dry_run or not opening.quiet:
        results_console().print(patch_report(planned, loaded, checks, written))


@exit_codes
@takes_finding
def inspect(
    target: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A model or a recipe.")],
    lengths: o.InspectLengths = None,
    modules: o.EveryModule = False,
    as_json: o.Json = False,
    opening: Opening = GATHERED,
) -> None:
    """Say from the configuration alone what of MODEL can be patched, and how much of its work that is.

    No weights are read and no memory is needed, whatever the model's size. Causal attention is counted by the keys that
    its rows see. Exit code 4 if nothing can be patched.
    """
    from .commands import inspect as command
    from .inspection.report import inspection_report

    wanted = command.check_lengths(lengths)
    opening.start(target)
    results = command.inspect(command.open_skeleton(target, opening.loading, model=opening.model), wanted)
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        results_console(at_least=WIDE).print(inspection_report(results, modules))
    raise typer.Exit(command.exit_code(results))


@exit_codes
@takes_opening
def validate(
    recipe: o.RecipeArgument = None,
    verify: Annotated[bool, typer.Option(help="Also prove it on the loaded model.", rich_help_panel=o.OUTPUT)] = True,
    opening: Opening = GATHERED,
) -> None:
    """Check a recipe, for example one edited by hand.

    First its files, then every module of its plan on its model, then the proof of patch. Nothing is written.
    """
    from .commands.patch import prove_recipe
    from .commands.report import validation_report
    from .commands.validate import check_target, read_recipe

    directory = read_recipe(recipe)
    opening.start(str(directory))
    opened = opening.target(str(directory))
    check_target(opened)
    if verify:
        opening.say("proving the patch on the loaded model ...")
    checks = prove_recipe(opened.loaded, opened.recipe) if verify else []
    if not opening.quiet:
        results_console().print(validation_report(opened, checks))


@exit_codes
@takes_opening
@takes_calibrating
def calibrate(
    target: o.TargetArgument = None,
    dataset: o.Dataset = None,
    split: o.Split = None,
    asked: Any = GATHERED,
    output: o.RecipeOutput = None,
    force: o.Force = False,
    opening: Opening = GATHERED,
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

    opening.start(target)
    check_options(target, asked)
    given = items_of(dataset, split, "train") if dataset is not None else None
    opened = opening.target(target)
    directory = output or opened.directory or Path(DEFAULT_RECIPE)
    in_place = opened.directory is not None and same_place(directory, opened.directory)
    check_writable(directory, force=force or in_place)
    check_model_place(directory, opened.loaded, save_model=False, force=force)
    items = given or items_of(opened.default_dataset, split, "train")
    total, processes = min(asked.samples, len(items)), Processes.join()
    with resumable(), opening.progress(total, "calibrating", processes=processes.count) as advance:
        calibrated = calibrate_target(
            opened, items, asked, directory=directory, processes=processes, advance=advance, tell=opening.say
        )
    if not processes.is_main:
        return
    save_calibrated(calibrated.recipe, calibrated.histograms, directory)
    calibrated.checkpoint.remove()
    if not opening.quiet:
        results_console().print(calibration_report(calibrated, directory))


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
