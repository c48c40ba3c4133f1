"""The table of docs/families.md says of every tested family which way it goes."""

from __future__ import annotations

from pathlib import Path

import intercepted_models
import pytest
import transformers
from families.every import EVERY
from hf_sparsify.patcher.binding.modules import attention_modules, unreachable_attention
from torch import nn

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
PINNED = "transformers==" + transformers.__version__ in (ROOT / "constraints.txt").read_text().split()


def row(model: nn.Module, way: str | None = None) -> str:
    """One line of the table; way: where it is not the routes of the model's modules."""
    routes: dict[str, set[str]] = {}
    for target in attention_modules(model):
        routes.setdefault(target.route, set()).add(type(target.module).__name__)
    classes = [f"`{name}`" for route in routes.values() for name in sorted(route)]
    classes += [f"`{name}`" if way else f"`{name}` (stays dense)" for name in unreachable_attention(model)]
    attention = ", ".join(classes) or "-"
    return f"| `{type(model).__name__}` | {attention} | {way or ' and '.join(routes)} |"


@pytest.mark.skipif(not PINNED, reason="the page is of the pinned transformers")
def test_the_table_is_what_the_tests_cover() -> None:
    rows = [row(family.build()) for family in EVERY.values()]
    rows += [row(intercepted_models.build(name)) for name in intercepted_models.FAMILIES]
    rows += [row(intercepted_models.build(name), "refused") for name in intercepted_models.REFUSED]
    written = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert written == list(dict.fromkeys(rows))
