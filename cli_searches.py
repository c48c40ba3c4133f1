"""The commands that try many recipes of one model: sweep, tune. See cli.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from . import search_options as so
from .opening import Opening, items_of
from .option_groups import GATHERED, takes_opening, takes_sweeping, takes_tuning
from .terminal import WIDE, command_line, exit_codes, results_console, resumable, warned_once


@exit_codes
@takes_opening
@takes_sweeping
def sweep(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub name, folder, demo-bert, demo-llama or demo-t5.")],
    grid: Any = GATHERED,
    dataset: o.Dataset = None,
    split: o.Split = None,
    asking: Any = GATHERED,
    require_conclusion: so.RequireDecision = False,
    as_json: o.Json = False,
    output: so.SweepOutput = None,
    force: so.ForceSweep = False,
    opening: Opening = GATHERED,
) -> None:
    """Try a grid of methods and settings on the same items, and recommend the one that saves most and passes.

    Every cell is a recipe of its own with its evaluation; the dense model answers once for all of them. top-theta is
    calibrated once, and again where that keeps over 10 % more or less than it should. Verdicts are those of a fixed
    sequence, from dense to sparse: the chance of any wrong PASS among all cells is at most 2.5 %.

    Uses the validation split of squad (of demo for demo models) unless told otherwise. The same command goes on where
    it was stopped. Exit code 0: a sparse cell passes, or nothing is decided; 3: all that were tested fail; 1: none ran.
    """
    from .commands import sweep as command
    from .commands.target import default_dataset, full_name
    from .processes import Processes
    from .sweeping.document import DEFAULT_DIRECTORY, check_output
    from .sweeping.report import sweep_report
    from .sweeping.run import Sweep

    directory = output or Path(DEFAULT_DIRECTORY)
    dataset = default_dataset(model) if dataset is None else dataset
    processes = Processes.join()
    command.check_names(model, dataset, grid, processes.count)
    check_output(directory)
    opening.start(model)
    with warned_once(), resumable():
        items = items_of(dataset, split, "validation")
        others = dataset if grid.calibrate_on is None else grid.calibrate_on
        calibration = items_of(others, None, "train") if grid.calibrates else None
        loaded = opening.load(full_name(model))
        made = Sweep(loaded, items, calibration, grid, asking, directory, command_line(), processes, opening.say)
        made.open(force=force)
        with opening.progress(made.steps, "sweeping", processes=processes.count) as advance:
            made.prepare(advance)
            ran = made.evaluate(advance)
        if not processes.is_main:
            return
        if grid.bench is not None:
            with opening.progress(len(made.cells), "timing") as advance:
                ran = made.time(advance) or ran
        made.end()
    if as_json:
        print(json.dumps(made.document, indent=2))
    else:
        results_console(at_least=WIDE).print(sweep_report(made.document, made.directory))
    opening.say(f"{'wrote' if ran else 'was there already, judged anew:'} {directory}")
    raise typer.Exit(command.exit_code(made.document, require_conclusion=require_conclusion))


@exit_codes
@takes_opening
@takes_tuning
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub name, folder, demo-bert, demo-llama or demo-t5.")],
    dataset: o.Dataset = None,
    split: o.Split = None,
    tuning: Any = GATHERED,
    as_json: o.Json = False,
    output: so.TunedOutput = None,
    force: so.ForceTune = False,
    opening: Opening = GATHERED,
) -> None:
    """Find a keep rate for each module of MODEL that saves most while the verdict stays PASS.

    First it measures what each module alone loses, without labels, and spends budgets where that costs least. Then the
    tuned allocations, and uniform keeps at the same budgets, are judged on data that tuning never saw, from dense to
    sparse. The sparsest tuned one that passes becomes the recipe; all else is in its folder tune.

    Looks at the train split and judges on the validation split of squad (of demo for demo models) unless told
    otherwise. The same command goes on where it was stopped. Exit code 3: the densest allocation fails; 5: that cannot
    be told.
    """
    from .commands import tune as command
    from .commands.target import default_dataset, full_name
    from .processes import Processes
    from .tuning.report import tune_report

    directory = output or Path(command.DEFAULT_DIRECTORY)
    dataset = default_dataset(model) if dataset is None else dataset
    processes = Processes.join()
    command.check_names(model, dataset, tuning)
    command.check_directory(directory, force=force)
    opening.start(model)
    with warned_once(), resumable():
        data = command.load_data(dataset, split, tuning)
        loaded = opening.load(full_name(model))
        total = command.passes(tuning, data, processes)
        with opening.progress(total, "tuning", processes=processes.count) as advance:
            steps = command.Steps(advance, opening.say)
            tuned = command.Tuning(loaded, data, tuning, directory, command_line(), steps, processes)
            made = tuned.run(force=force)
        if not processes.is_main:
            return
    if as_json:
        print(json.dumps(made.record, indent=2))
    else:
        results_console(at_least=WIDE).print(tune_report(made.record, made.found))
    opening.say(f"wrote {directory}" if made.record["recommended"] else f"no recipe was written; see {directory}/tune")
    raise typer.Exit(made.exit_code)
