"""The commands that show what other commands have found: report, plot. See cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .opening import Opening, items_of
from .option_groups import GATHERED, takes_opening
from .terminal import exit_codes, say

Prompt = Annotated[str | None, typer.Option(help="Whose pattern is drawn (default: the first item of the data set).")]
Layer = Annotated[int | None, typer.Option(help="Whose pattern is drawn (default: the middle one).")]
Head = Annotated[
    int | None,
    typer.Option(help="Whose pattern is drawn (default: the two that keep the smallest and the largest share)."),
]
ImageFormat = Annotated[str, typer.Option("--format", help="png or svg.", rich_help_panel=o.OUTPUT)]
PlotOutput = Annotated[
    Path | None,
    typer.Option("--output-dir", "-o", help="Where the files go (default: RECIPE/plots).", rich_help_panel=o.OUTPUT),
]


@exit_codes
def report(directories: o.Reported = None, output: o.ReportOutput = None, quiet: o.Quiet = False) -> None:
    """Write one HTML page on what was measured: the verdict, what is saved and lost, layers, flipped answers, speed.

    DIR is a sweep, a tuned recipe, a recipe that was evaluated or timed, or a directory with results.json or
    bench.json; several are for one model. The page needs no network. Beside it, in the folder NAME-files, are all
    charts as PNG and all tables as CSV.
    """
    from .commands.report_page import write_report

    written = write_report(directories, output)
    for sentence in written.verdicts:
        print(sentence)
    for note in written.notes:
        say(f"warning: {note}")
    say(f"wrote {written.page}; charts and tables are in {written.folder}", quiet=quiet)


@exit_codes
@takes_opening
def plot(
    target: o.RecipeArgument = None,
    prompt: Prompt = None,
    dataset: o.Dataset = None,
    split: o.Split = None,
    layer: Layer = None,
    head: Head = None,
    image_format: ImageFormat = "png",
    output: PlotOutput = None,
    opening: Opening = GATHERED,
) -> None:
    """Draw a recipe: thresholds over row length, what each head keeps, and one attention pattern, dense and patched.

    What heads keep is taken from the newest `sparsify eval` of the recipe; without one, or with --prompt or --dataset,
    it is measured. Writes images to RECIPE/plots, over older ones, and says in a sentence what each shows.
    """
    from .charts.extra import require_charts

    require_charts("a plot")
    from .commands import plot as command
    from .commands.plot_inputs import read_items, read_prompt

    options = command.PlotOptions(prompt, layer, head, image_format)
    command.check_target(target, output)
    opening.start(target)
    items = items_of(dataset, split, "validation") if dataset is not None else None
    opened = opening.target(target)
    if prompt is not None:
        read = read_prompt(opened.loaded, prompt)
    else:
        read = read_items(opened.loaded, items or items_of(opened.default_dataset, split, "validation"))
    given = prompt is not None or dataset is not None
    drawings = command.plot_target(opened, read, options, given=given, tell=opening.say)
    paths = command.write(drawings, command.place_of(opened, output), options.format)
    for path, drawing in zip(paths, drawings, strict=True):
        print(f"{path}: {drawing.sentence}")
