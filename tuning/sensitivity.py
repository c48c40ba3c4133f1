"""The sensitivity map: what each module alone loses at each keep rate, and what it saves. It needs no labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, UsageError, is_out_of_memory
from ..patcher.binding.modules import AttentionModule, unwrapped
from ..patcher.binding.patchable import PatchableModule, patchable_modules
from ..patcher.methods import Method, TopKFeedForward
from ..patcher.methods.budget import Budget
from ..patcher.outputs import finite_outputs
from .gradients import output_gradients
from .probe import Probe, Seen

PREDICTED_KL = (
    "predicted KL divergence from dense, in nats per outcome, if this module alone is sparse: half the mean of "
    "(gradient . output error)^2; inputs are the dense model's"
)
STREAM_ERROR = (
    "squared error of the module's output if it alone is sparse, relative to the residual stream that it becomes part "
    "of, mean over positions; inputs are the dense model's"
)
HEAD_ERROR_IS = "relative squared error of each head's output before the output projection"

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class ModuleSensitivity:
    """Of one module; lists are by keep rate, in the order of the map's.

    error: what the map's error_is says; stream_error: see STREAM_ERROR. error_by_head: [heads][keeps],
    None where heads are not seen. kept: share of attention elements or activations. v_rows: share of V rows that
    decoding steps read; None where none were counted. microseconds: of one call, median over items; None where calls
    were not timed. elements: visible elements or activations of all items. decode_rows: V rows that decoding steps see.
    width: multiply-adds behind one element.
    """

    kind: str
    stack: str
    layer: int | None
    heads: int | None
    error: list[float]
    stream_error: list[float]
    error_by_head: list[list[float]] | None
    kept: list[float]
    v_rows: list[float] | None
    microseconds: list[float] | None
    elements: int
    decode_rows: int
    width: int


@dataclass(frozen=True)
class SensitivityMap:
    """keeps: from 1.0, which leaves a module dense, to the sparsest. items: how many were read. error_is: PREDICTED_KL,
    or STREAM_ERROR for a model that gives no distribution."""

    keeps: list[float]
    items: int
    error_is: str
    modules: dict[str, ModuleSensitivity]


def at_keep(method: Method, keep: float) -> Method:
    """The method with a kept fraction for its budget. UsageError for one that has none."""
    if not isinstance(method, Budget | TopKFeedForward):
        raise UsageError(f"{method.name} has no keep rate")
    made: Method = replace(method, k=None, keep=keep)
    return made


def measure(
    model: nn.Module,
    plan: Mapping[str, Method],
    keeps: Sequence[float],
    items: Iterable[list[Inputs]],
    *,
    decoding: bool = False,
    timed: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> SensitivityMap:
    """The map of the modules of a plan (top-k alone, of attention or feed-forward), each at every keep rate.

    keeps: 1.0 first. items: the model inputs of each item, unpadded. decoding, timed: as in Probe. seed: of the
    outcomes that are drawn. tell: called with a sentence if there is no memory for gradients; the map then has
    STREAM_ERROR alone. The model must not be patched, and is dense all the time.
    DataError if no item can be read, or a sparse output is not finite; SparsifyError if the model's is not.
    """
    model = unwrapped(model)
    found = patchable_modules(model, plan)
    sums = {name: _Sums(len(keeps)) for name in plan}
    plans = [{name: at_keep(method, keep) for name, method in plan.items()} for keep in keeps]
    probe = Probe(model, plans, lambda seen: sums[seen.name].add(seen), decoding=decoding, timed=timed)
    # More bits the generator does not take.
    gradients, count = _Gradients(model, list(plan), torch.Generator().manual_seed(seed % 2**63), tell), 0
    for inputs in items:
        for one in inputs:
            slopes = gradients.of(one)
            for name, total in sums.items():
                total.slopes = None if slopes is None else slopes[0].get(name)
                total.outcomes += 0 if slopes is None else slopes[1]
            with probe.watching():
                model(**one, use_cache=False)
        count += bool(inputs)
    if not count:
        raise DataError("there is no item to tune on that fits what the model can read at once")
    if not gradients.fit:
        for total in sums.values():
            total.outcomes = 0
    modules = {name: sums[name].result(found[name], probe, name) for name in plan if sums[name].positions}
    if not modules:
        raise DataError("none of the planned modules was called: the items do not reach them")
    predicted = all(total.outcomes for total in sums.values())
    return SensitivityMap(list(keeps), count, PREDICTED_KL if predicted else STREAM_ERROR, modules)


@dataclass
class _Gradients:
    """output_gradients of one input after the other, until there is no memory for them."""

    model: nn.Module
    names: Sequence[str]
    generator: torch.Generator
    tell: Callable[[str], None]
    fit: bool = True

    def of(self, inputs: Inputs) -> tuple[dict[str, list[Tensor]], int] | None:
        """None too where they do not fit."""
        if not self.fit:
            return None
        try:
            with finite_outputs(self.model):
                return output_gradients(self.model, self.names, inputs, self.generator)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.fit = False
        self.tell("out of memory for gradients: allocating by the stream error alone; a smaller --dtype needs less")
        return None


@dataclass
class _Sums:
    """What is added up of one module's calls. slopes: gradients at the output of the call that comes next."""

    keeps: int
    slopes: list[Tensor] | None = None
    outcomes: int = 0
    positions: int = 0
    width: int = 0
    changes: list[float] = field(init=False)
    squares: list[float] = field(init=False)
    head_squares: list[Any] = field(init=False)
    head_dense: Any = 0
    seconds: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        sparse = self.keeps - 1
        self.changes, self.squares, self.head_squares = [0.0] * sparse, [0.0] * sparse, [0] * sparse
        self.seconds = [[] for _ in range(self.keeps)]

    def add(self, seen: Seen) -> None:
        """One call."""
        size = _squared(seen.stream).clamp(min=1e-30)
        self.positions += size.numel()
        self.width = seen.dense.shape[-1]
        for place, sparse in enumerate(seen.sparse):
            self.squares[place] += float((_squared(sparse, seen.dense) / size).sum())
            self.changes[place] += self._change(sparse, seen.dense)
        if seen.heads is not None:
            self.head_dense = self.head_dense + _by_head(_squared(seen.heads))
            for place, heads in enumerate(seen.sparse_heads):
                if heads is not None:
                    self.head_squares[place] = self.head_squares[place] + _by_head(_squared(heads, seen.heads))
        if seen.seconds is not None:
            for times, value in zip(self.seconds, [seen.seconds[0], *seen.seconds[1]], strict=True):
                times.append(value)

    def _change(self, sparse: Tensor, dense: Tensor) -> float:
        """Half the mean over draws of (gradient . error)^2; a module that is called twice has the gradient of the last
        call alone, and only that is counted."""
        if not self.slopes or self.slopes[0].shape != dense.shape:
            return 0.0
        error = sparse.float() - dense.float()
        return sum(float((slope.float() * error).sum()) ** 2 for slope in self.slopes) / (2 * len(self.slopes))

    def result(self, target: PatchableModule, probe: Probe, name: str) -> ModuleSensitivity:
        """What they come to."""
        counts = [meter.modules[name] for meter in probe.meters]
        attention = isinstance(target, AttentionModule)
        heads = getattr(target, "heads", None)
        elements = counts[0].visible if attention else counts[0].activations
        kept = [count.kept if attention else count.activations_kept for count in counts]
        rows = counts[0].v_rows if probe.decoding and target.stack == "decoder" else 0
        stream_error = [0.0, *(total / self.positions for total in self.squares)]
        error = [0.0, *(total / self.outcomes for total in self.changes)] if self.outcomes else stream_error
        if not all(map(math.isfinite, [*error, *stream_error])):
            raise DataError(
                f"the outputs of {name} are not finite: leave it out, or load the model with another --dtype"
            )
        return ModuleSensitivity(
            kind=target.kind,
            stack=target.stack,
            layer=target.layer,
            heads=heads,
            error=error,
            stream_error=stream_error,
            error_by_head=self._by_head(),
            kept=[1.0, *(part / max(1, elements) for part in kept[1:])],
            v_rows=[1.0, *(count.v_rows_kept / rows for count in counts[1:])] if rows else None,
            microseconds=[1e6 * statistics.median(times) for times in self.seconds] if probe.timed else None,
            elements=elements,
            decode_rows=rows,
            width=_element_width(target, self.width),
        )

    def _by_head(self) -> list[list[float]] | None:
        if isinstance(self.head_dense, int):
            return None
        dense = self.head_dense.clamp(min=1e-30)
        return [
            [0.0, *(float(squares[head] / dense[head]) for squares in self.head_squares)] for head in range(len(dense))
        ]


def _squared(left: Tensor, right: Tensor | None = None) -> Tensor:
    """|left - right|^2 over the last dimension, float64 on the CPU: some devices have none."""
    difference = left.float() if right is None else left.float() - right.float()
    return difference.pow(2).sum(-1).cpu().double()


def _by_head(values: Tensor) -> Tensor:
    """[B, H, q] -> [H]."""
    return values.sum((0, 2))


def _element_width(target: PatchableModule, output: int) -> int:
    """Multiply-adds behind one kept element: a head's width, or the output's of a feed-forward layer."""
    if not isinstance(target, AttentionModule):
        return output
    width = getattr(target.module, "head_dim", None)
    return width if isinstance(width, int) else max(1, output // (target.heads or 1))
