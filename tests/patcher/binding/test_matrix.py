"""Every family with every method: whole rows are dense, few keys are the definition, and unpatching is exact.

A part in which every two of family, method and setting meet always runs; the rest has the mark `matrix` and runs with
`make test-all`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from definition import check_every_call
from families.cells import CELLS, METHODS, PART, Cell, plan_for, run, tables_for
from families.every import EVERY
from families.family import in_float64
from hf_sparsify.patcher.binding.patching import apply_plan, current_patch, remove_patch
from hf_sparsify.patcher.methods import TopK, TopKFeedForward
from patched_models import close, far, state
from torch.nn.utils.parametrize import is_parametrized


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, id=", ".join(cell), marks=() if cell in PART else pytest.mark.matrix) for cell in CELLS],
)
def test_family_by_method_by_setting(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    name, method, setting = cell
    family = EVERY[name]
    model = family.build()
    dense, before = run(model, family, setting), state(model)
    plan = plan_for(model, METHODS[method])
    assert plan

    apply_plan(model, {module: method.as_dense() for module, method in plan.items()})
    close(run(model, family, setting), dense)
    remove_patch(model)

    apply_plan(model, plan, tables_for(plan))
    assert far(run(model, family, setting), dense)
    assert all(patch.calls for patch in current_patch(model).module_patches)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(run(model, family, setting), dense)

    apply_plan(in_float64(model), plan, tables_for(plan))
    calls = check_every_call(model, monkeypatch)
    run(model, family, setting)
    assert set(calls) == set(plan)


@pytest.mark.parametrize("name", EVERY)
def test_copies_of_a_patched_model_are_patched_models(name: str) -> None:
    family = EVERY[name]
    model = family.build()
    dense, before = run(model, family, "unpadded"), state(model)
    plan = plan_for(model, TopK(k=3, compensation="sdc+vmc"))
    if family.feed_forward:
        plan |= plan_for(model, TopKFeedForward(k=8))
    apply_plan(model, plan)
    sparse = run(model, family, "unpadded")
    copies = [copy.deepcopy(model)]
    if not any(is_parametrized(module) for module in model.modules()):  # those cannot be pickled, patched or not
        copies.append(pickle.loads(pickle.dumps(model)))  # noqa: S301
    for twin in copies:
        assert torch.equal(run(twin, family, "unpadded"), sparse)
        remove_patch(twin)
        assert state(twin) == before
        assert torch.equal(run(twin, family, "unpadded"), dense)
    assert torch.equal(run(model, family, "unpadded"), sparse)
