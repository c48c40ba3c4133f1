"""`sparsify sweep`: what is tried, checked before anything is loaded, and how the command ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..evaluation.sources import is_path
from ..evaluation.verdict.gate import FAIL, INCONCLUSIVE, PASS
from ..patcher.recipe import is_recipe
from ..sweeping.document import DONE, Document, decision, sparse_cells
from ..sweeping.grid import Cell, make_cells
from .bench import BenchOptions, parse_lengths
from .calibrate import CalibrateOptions
from .evaluate import GATE_FAILED, NO_CONCLUSION


@dataclass(frozen=True)
class SweepOptions:
    """The cells, what top-theta is calibrated on, and how cells are timed; `sparsify sweep --help` explains each.

    bench: None if they are not.
    """

    cells: tuple[Cell, ...]
    samples: int = 128
    calibrate_on: str | None = None
    bench: BenchOptions | None = None

    @property
    def calibrates(self) -> bool:
        """Whether any cell needs thresholds."""
        return any(cell.setting.needs_thresholds for cell in self.cells)


def make_options(
    *,
    methods: str = "top-k,top-theta",
    samples: int = 128,
    calibrate_on: str | None = None,
    bench: bool = False,
    lengths: str | None = None,
    **grid: Any,
) -> SweepOptions:
    """The options as they are typed; grid: see make_cells. UsageError for what is wrong whatever the model is."""
    CalibrateOptions(samples=samples)
    if lengths is not None and not bench:
        raise UsageError("--lengths goes with --bench")
    # Eager attention and memory say nothing about which cell to take; `sparsify bench` measures them for one.
    timing = BenchOptions(parse_lengths(lengths), eager=False, memory=False) if bench else None
    options = SweepOptions(make_cells(methods, **grid), samples, calibrate_on, timing)
    if calibrate_on is not None and not options.calibrates:
        raise UsageError("--calibrate-on goes with --methods top-theta: nothing else is calibrated")
    return options


def check_names(model: str, dataset: str, options: SweepOptions, processes: int) -> None:
    """UsageError for what is wrong before anything is loaded. dataset: as typed, or the default one."""
    if is_recipe(model):
        raise UsageError(f"{model} is a recipe: name its MODEL, and with --methods and --keep what to try on it")
    if options.calibrates and options.calibrate_on is None and is_path(dataset):
        raise UsageError(
            f"top-theta is calibrated on the train split, and the file {dataset} has none: name other data with "
            "--calibrate-on, or leave top-theta out of --methods"
        )
    if options.bench is not None and processes > 1:
        raise UsageError("--bench times in one process: leave it out here, then give it to the same command alone")


def exit_code(document: Document, *, require_conclusion: bool) -> int:
    """0 if a sparse cell passes; 1 if none could be evaluated, GATE_FAILED if all that were tested FAIL; else nothing
    is decided, which is NO_CONCLUSION if a conclusion was required."""
    cells = sparse_cells(document)
    if cells and not any(entry["status"] == DONE for entry in cells):
        return 1
    found = {decision(entry) for entry in cells} & {PASS, FAIL, INCONCLUSIVE}
    if PASS in found:
        return 0
    if found == {FAIL}:
        return GATE_FAILED
    return NO_CONCLUSION if require_conclusion else 0
