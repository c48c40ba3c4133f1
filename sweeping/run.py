"""A sweep from its plan to its end; what is done already is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..commands.bench import require_text
from ..commands.calibrate import CalibrateOptions
from ..commands.calibrator import CALIBRATION, Calibrator, describe_calibration
from ..commands.evaluate import EvalOptions, Outcome, evaluate_targets, make_task
from ..commands.sweep import SweepOptions
from ..commands.target import Target
from ..environment import describe_environment, package_versions
from ..errors import FAILURES, one_sentence
from ..evaluation.dense_cache import has_offloaded_weights
from ..evaluation.items import ItemSet
from ..evaluation.journal import RESULTS
from ..evaluation.run import Lost, fitting_items
from ..evaluation.sources import not_judged
from ..evaluation.verdict.gate import Verdict
from ..evaluation.verdict.sequence import chain_level, fixed_sequences
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import attention_modules, unwrapped
from ..patcher.methods import method_to_dict
from ..patcher.weights import weights_fingerprint
from ..processes import Processes
from . import document as doc
from .grid import Cell, chains_of, middle
from .recipes import Fitted, fit_cell, plan_cells, read_cell, write_cell
from .timing import ratios, same_lengths, time_cell

Advance = Callable[[int], None]


@dataclass
class Sweep:
    """One sweep of a loaded model. calibration_items: None where nothing is calibrated; those that will be
    evaluated are left out. say: a line for a person."""

    loaded: LoadedModel
    items: ItemSet
    calibration_items: ItemSet | None
    options: SweepOptions
    asking: EvalOptions
    directory: Path
    command: str
    processes: Processes
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        """Plans every cell. Raises the reason if the model can take none of them, and what cannot be asked of it;
        UsageError if all that calibration could see is evaluated, and for --bench where bench cannot measure."""
        if self.options.bench is not None:
            require_text(self.loaded)
        if self.calibration_items is not None:
            judged = self.items.sample(self.asking.limit, self.asking.seed)
            self.calibration_items = not_judged(self.calibration_items, judged, "calibrate")
        self.ready: dict[str, Fitted] = {}
        self.document: doc.Document = {}
        self.planned, self.refused = plan_cells(self.loaded, self.options.cells)
        if not self.planned:
            raise next(iter(self.refused.values()))
        self.cells = [cell for cell in self.options.cells if cell.name in self.planned]
        self.task = make_task(self._target(self.cells[0]), self.items, self.asking)
        fitting_items(self.task)

    @property
    def samples(self) -> int:
        """Of one calibration."""
        return 0 if self.calibration_items is None else min(self.options.samples, len(self.calibration_items))

    @property
    def steps(self) -> int:
        """To show progress of: the items of all cells, and the samples of each calibration that there may be."""
        return len(self.cells) * len(self.task.items) + len(self._thresholded()) * self.samples

    def open(self, *, force: bool) -> None:
        """Finds what an earlier run of the same sweep left, or begins. UsageError if the directory holds another."""
        run = self._run_key()
        before = doc.earlier(self.directory, run, force=force)
        reasons = {name: one_sentence(error) for name, error in self.refused.items()}
        self.document = doc.make_document(self.options.cells, reasons, run=run, **self._about())
        for cell in self.cells:
            self.entry(cell.name)["attention"] = self._patched(cell)
        self.processes.in_turn(lambda: self._take_earlier(before["cells"] if before else ()))
        self.processes.wait()  # nobody writes before everybody has read
        if before is None and self.processes.is_main:
            doc.remove_sweep(self.directory)
        self._save()
        self.processes.wait()  # nobody reads what is being removed

    def prepare(self, advance: Advance) -> None:
        """Makes the recipe of every cell; those that need thresholds fail together if calibration does."""
        waiting = [cell for cell in self._thresholded() if cell.name not in self.ready]
        calibrator = self._calibrator() if waiting else None
        if calibrator is not None:
            try:
                calibrator.calibrate(advance)
            except FAILURES as error:
                for cell in waiting:
                    doc.fail(self.entry(cell.name), f"calibration failed: {one_sentence(error)}")
            else:
                calibrator.write()
        for cell in self.cells:
            if cell.name not in self.ready and self.entry(cell.name)["status"] == doc.WAITING:
                self._prepare(cell, calibrator)
            if cell.setting.needs_thresholds and (calibrator is None or cell is not middle(self.cells)):
                advance(self.samples // self.processes.count)

    def evaluate(self, advance: Advance) -> bool:
        """Evaluates all cells that could be made in one pass over the items; whether the model ran."""
        cells = [cell for cell in self.cells if cell.name in self.ready]
        advance((len(self.cells) - len(cells)) * len(self.task.items) // self.processes.count)
        if not cells:
            return True
        lost: Lost = {}

        def correct(verdicts: list[Verdict]) -> list[Verdict]:
            return self._in_sequence([cell for place, cell in enumerate(cells) if place not in lost], verdicts)

        outcomes = evaluate_targets(
            [self._target(cell) for cell in cells],
            self.items,
            self.asking,
            processes=self.processes,
            command=self.command,
            advance=advance,
            correct=correct,
            lost=lost,
        )
        if not self.processes.is_main:
            return True
        found = iter(outcomes)
        for place, cell in enumerate(cells):
            if place in lost:
                doc.fail(self.entry(cell.name), lost[place])
            else:
                self._take(cell, next(found))
        self._recommend()
        return bool(lost) or not all(outcome.was_there for outcome in outcomes)

    def time(self, advance: Advance) -> bool:
        """Times every cell that has no times yet beside the dense model; whether there was one."""
        options = self.options.bench
        timed = False
        for cell in self.cells if options is not None else ():
            entry = self.entry(cell.name)
            if options is not None and entry["status"] == doc.DONE and entry["bench"] is None:
                file, entry["bench_error"] = time_cell(self._target(cell), options, self.command)
                entry["bench"] = file and self._below(file)
                timed = True
                self._save()
            advance(1)
        if timed:
            self._recommend()
        return timed

    def end(self) -> None:
        """Writes that all is done."""
        self.document["ended"] = True
        self._save()

    def entry(self, name: str) -> doc.Entry:
        """A cell in the document."""
        return next(entry for entry in self.document["cells"] if entry["name"] == name)

    def _thresholded(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.setting.needs_thresholds]

    def _patched(self, cell: Cell) -> dict[str, int] | None:
        """How many of the model's attention modules a cell patches, if any."""
        names = {module.name for module in attention_modules(unwrapped(self.loaded.model))}
        patched = len(names & self.planned[cell.name].recipe.plan.keys())
        return {"patched": patched, "modules": len(names)} if patched else None

    def _place(self, cell: Cell) -> Path:
        return self.directory / doc.RECIPES / cell.name

    def _target(self, cell: Cell) -> Target:
        """With its recipe as it is planned before it is made."""
        made = self.ready.get(cell.name) or self.planned[cell.name]
        return Target(self.loaded, made.recipe, self._place(cell))

    def _take_earlier(self, cells: Iterable[doc.Entry]) -> None:
        for entry in cells:
            self._take_cell(entry)

    def _take_cell(self, before: doc.Entry) -> None:
        """A cell as an earlier run left it: its recipe and its times; evaluating finds its answers."""
        cell = next((cell for cell in self.cells if cell.name == before["name"]), None)
        if cell is None:
            return
        recipe = read_cell(self._place(cell), self.planned[cell.name])
        kept, again = before.get("kept_per_k"), before.get("recalibrated") is True
        kept = kept if isinstance(kept, int | float) and not isinstance(kept, bool) else None
        if recipe is None or (cell.setting.needs_thresholds and kept is None):
            return
        self.ready[cell.name] = Fitted(recipe, kept, again)
        timed = before.get("bench")
        known = isinstance(timed, str) and same_lengths(self.directory, timed, self.options.bench)
        self.entry(cell.name).update(kept_per_k=kept, recalibrated=again, bench=timed if known else None)

    def _calibrator(self) -> Calibrator | None:
        cell, items = middle(self.cells), self.calibration_items
        if cell is None or items is None:
            return None
        options = CalibrateOptions(self.options.samples, self.asking.seed, distractors=self.asking.distractors)
        at, place = self.planned[cell.name].recipe, self.directory / CALIBRATION
        return Calibrator(self.loaded, items, options, at, place, self.processes, self.say)

    def _prepare(self, cell: Cell, calibrator: Calibrator | None) -> None:
        """Makes and writes one cell's recipe. SparsifyError if it cannot be written."""
        fitted, entry = Fitted(self.planned[cell.name].recipe), self.entry(cell.name)
        if cell.setting.needs_thresholds and calibrator is not None:
            try:
                fitted = fit_cell(calibrator, self.planned[cell.name].recipe, self._place(cell))
            except FAILURES as error:
                doc.fail(entry, one_sentence(error))
                return
        if self.processes.is_main:
            fitted = write_cell(fitted, self.planned[cell.name], self._place(cell))
        self.ready[cell.name] = fitted
        entry.update(kept_per_k=fitted.kept_per_k, recalibrated=fitted.recalibrated)
        self._save()

    def _in_sequence(self, cells: list[Cell], verdicts: list[Verdict]) -> list[Verdict]:
        """Verdicts of cells, chain after chain, corrected for all chains that could be planned."""
        found = {cell.name: verdict for cell, verdict in zip(cells, verdicts, strict=True)}
        chains = chains_of(self.cells).values()
        corrected = fixed_sequences([[found[c.name] for c in chain if c.name in found] for chain in chains])
        return [verdict for chain in corrected for verdict in chain]

    def _take(self, cell: Cell, outcome: Outcome) -> None:
        level = chain_level(len(chains_of(self.cells)))
        doc.take_results(self.entry(cell.name), outcome.results, self._below(outcome.directory / RESULTS), level)

    def _recommend(self) -> None:
        timed = {entry["name"]: entry["bench"] for entry in self.document["cells"] if entry["bench"]}
        speeds = {name: ratios(self.directory / file) for name, file in timed.items()}
        self.document["recommended"] = doc.recommend(self.document, speeds)
        self._save()

    def _below(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _save(self) -> None:
        if self.processes.is_main:
            doc.save_document(self.directory, self.document)

    def _about(self) -> dict[str, Any]:
        """What sweep.json says of the command, the model and the data."""
        gate, at, calibrated = self.asking.gate, middle(self.cells), self.calibration_items
        return {
            "command": self.command,
            "base_model": asdict(self.loaded.base),
            "task": self.task.name,
            "dataset": self.task.items.describe(),
            "gate": {**asdict(gate), "margin": gate.margin},
            "seed": self.asking.seed,
            "limit": self.asking.limit,
            "versions": package_versions(),
            "environment": describe_environment(),
            "calibration": None
            if at is None or calibrated is None
            else describe_calibration(calibrated, self.samples, self.asking.seed, at.setting.budget),
        }

    def _run_key(self) -> str:
        """64 hex digits over what the recipes and answers of a sweep follow from; what is timed and what decides do
        not belong to it, nor does the batch size, which belongs to each evaluation."""
        loaded, calibrated = self.loaded, self.calibration_items
        others = ("gate", "cache", "as_top_k", "batch_size")
        asked = {key: value for key, value in asdict(self.asking).items() if key not in others}
        content = [
            asdict(loaded.base),
            None if has_offloaded_weights(loaded) else weights_fingerprint(loaded.model, loaded.unused),
            [cell.name for cell in self.options.cells],
            {c: {m: method_to_dict(how) for m, how in p.recipe.plan.items()} for c, p in self.planned.items()},
            [self.items.name, self.items.split, self.items.fingerprint],
            calibrated and [calibrated.name, calibrated.split, calibrated.fingerprint, self.options.samples],
            asked,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
