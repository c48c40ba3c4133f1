"""No path, recipe, model or data file ends in a traceback or in anything but a sentence that names it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import bad_data
import bad_files
import pytest
from fault_drill import Case, Drill


def test_paths(drill: Drill) -> None:
    for case in bad_files.path_cases():
        drill.check("paths", case)


def test_damaged_recipes(drill: Drill) -> None:
    for case in bad_files.recipe_cases(random.Random(2), 40):
        drill.check("damaged recipes", case)


def test_damaged_models(drill: Drill) -> None:
    config = json.loads((drill.folder / "llama" / "config.json").read_text())
    for case in bad_files.model_cases(random.Random(3), config, 20):
        drill.check("damaged models", case)


@pytest.mark.parametrize("cases", [bad_data.wrong, bad_data.templates], ids=lambda cases: cases.__name__)
def test_wrong_data_files(cases: Callable[[], Iterator[Case]], drill: Drill) -> None:
    for case in cases():
        drill.check("wrong data files", case)


def test_damaged_data_files(drill: Drill) -> None:
    for case in bad_data.damaged(random.Random(4), 150):
        drill.check("damaged data files", case)
