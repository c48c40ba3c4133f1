"""The commands that show what other commands have found: report. See cli.py."""

from __future__ import annotations

from . import options as o
from .terminal import exit_codes, say


@exit_codes
def report(directories: o.Reported = None, output: o.ReportOutput = None, quiet: o.Quiet = False) -> None:
    """Write one HTML page on what was measured: the verdict, what is saved and lost, layers, flipped answers, speed.

    DIR is a sweep, a tuned recipe, a recipe that was evaluated or timed, or a directory with results.json or
    bench.json; several are for one model. The page needs no network. Beside it, in a folder of its name, are all charts
    as PNG and all tables as CSV.
    """
    from .commands.report_page import write_report

    written = write_report(directories, output)
    for sentence in written.verdicts:
        print(sentence)
    for note in written.notes:
        say(f"warning: {note}")
    say(f"wrote {written.page}; charts and tables are in {written.folder}", quiet=quiet)
