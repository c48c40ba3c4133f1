"""What tune.json knows of cells that were measured before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_sparsify.commands.tune_record import Moved, TuneRecord
from hf_sparsify.tuning.ladder import KL, TUNED, Cell

CELL = Cell("tuned-keep-0.5", "tuned", TUNED, {"layers.0": 0.5}, None, KL, 0.5, 0.5)


def test_cells_are_known_by_their_keep_rates_not_by_their_names(tmp_path: Path) -> None:
    record = TuneRecord(tmp_path, {"moved": None})
    record.keep_moved([CELL], [Moved(0.1, None)])
    assert record.moved([CELL]) == [Moved(0.1, None)]
    assert record.moved([replace(CELL, keeps={"layers.0": 0.35})]) is None
