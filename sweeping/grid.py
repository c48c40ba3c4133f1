"""The grid of a sweep: which cells there are, what each is called, and their chains from dense to sparse."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..commands.patch import Wanted, check_exclusive, make_wanted
from ..errors import UsageError
from ..patcher.methods import ATTENTION_METHODS
from ..patcher.methods.budget import Budget

NONE = "none"  # attention stays dense
FFN_CHAIN = "ffn"
KEEPS = "1.0,0.5,0.25,0.1,0.05"
CLUSTERS = "200,100,50,25"
WHERE = ("layers", "skip_layers", "kind", "stack")  # options that select modules, whatever their method is

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Setting:
    """What differs between cells. Of keep, k and clusters at most one; of ffn_keep and ffn_k at most one, None where
    feed-forward layers were not asked for."""

    method: str
    keep: float | None = None
    k: int | None = None
    clusters: int | None = None
    ffn_keep: float | None = None
    ffn_k: int | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it keeps all, by construction: the control of a chain."""
        whole_ffn = self.ffn_k is None and self.ffn_keep in (None, 1.0)
        return whole_ffn and (self.method == NONE or self.keep == 1.0)

    @property
    def needs_thresholds(self) -> bool:
        """A row that keeps all of its keys has no use for one."""
        return self.method == "top-theta" and self.keep != 1.0

    @property
    def patches_ffn(self) -> bool:
        """At keep = 1 only where nothing else is patched, so that the cell is a recipe at all."""
        return self.ffn_k is not None or (self.ffn_keep is not None and (self.ffn_keep < 1 or self.method == NONE))

    @property
    def chain(self) -> str:
        """The name of its chain: what does not change along it."""
        if self.method == NONE:
            return FFN_CHAIN
        return self.method + self._ffn_name

    @property
    def name(self) -> str:
        """As a folder."""
        if self.method == NONE:
            return f"ffn-keep-{self.ffn_keep}" if self.ffn_k is None else f"ffn-k-{self.ffn_k}"
        return f"{self.method}-{self._budget[0]}-{self._budget[1]}{self._ffn_name}"

    @property
    def label(self) -> str:
        """For tables: "top-k, keep = 0.5, FFN keep = 0.25"."""
        ffn = f"keep = {self.ffn_keep}" if self.ffn_k is None else f"k = {self.ffn_k}"
        if self.method == NONE:
            return f"FFN, {ffn}"
        return f"{self.method}, {self.budget}" + (f", FFN {ffn}" if self.patches_ffn else "")

    @property
    def budget(self) -> str:
        """Of attention: "keep = 0.5", "k = 64" or "100 clusters"."""
        what, value = self._budget
        return f"{value} clusters" if what == "clusters" else f"{what} = {value}"

    @property
    def _ffn_name(self) -> str:
        """Behind what attention is; nothing where feed-forward layers stay dense."""
        if not self.patches_ffn:
            return ""
        return f"-ffn-{self.ffn_keep}" if self.ffn_k is None else f"-ffn-k-{self.ffn_k}"

    @property
    def _budget(self) -> tuple[str, Any]:
        return next((what, value) for what in ("keep", "k", "clusters") if (value := getattr(self, what)) is not None)


@dataclass(frozen=True)
class Cell:
    """One setting, and what `patch` would be asked for."""

    setting: Setting
    wanted: Wanted

    @property
    def name(self) -> str:
        return self.setting.name


def make_cells(
    methods: str,
    keep: str | None = None,
    k: str | None = None,
    clusters: str | None = None,
    ffn_keep: str | None = None,
    ffn_k: str | None = None,
    **patching: Any,
) -> tuple[Cell, ...]:
    """All cells, chain after chain, each chain from dense to sparse.

    methods, keep, k, clusters, ffn_keep, ffn_k: lists separated by commas, in any order. patching: what holds for all
    cells, as in make_wanted; a method takes what it knows. UsageError names what is no list, and what no method takes.
    """
    names = _methods(methods)
    fields = {name: value for name, value in patching.items() if name not in WHERE and value is not None}
    fields = {name: value for name, value in fields.items() if value or not name.startswith("protect_")}
    where = {name: patching.get(name) for name in WHERE}
    _check_used(names, fields, keep=keep, k=k, clusters=clusters)
    check_exclusive(k, keep)  # type: ignore[arg-type]
    check_exclusive(ffn_k, ffn_keep, "ffn-")  # type: ignore[arg-type]
    budgets: list[dict[str, Any]] = [{"k": value} for value in _list("--k", k, _count)]
    budgets = budgets or [{"keep": value} for value in _list("--keep", KEEPS if keep is None else keep, _fraction)]
    groups = [{"clusters": value} for value in _list("--clusters", CLUSTERS if clusters is None else clusters, _count)]
    ffn: list[dict[str, Any]] = [{"ffn_k": value} for value in _list("--ffn-k", ffn_k, _count)]
    ffn = ffn or [{"ffn_keep": value} for value in _list("--ffn-keep", ffn_keep, _fraction)] or [{}]
    if NONE in names and ffn == [{}]:
        raise UsageError("--methods none leaves attention dense: give --ffn-keep or --ffn-k too")
    cells = []
    for method in names:
        along: list[dict[str, Any]] = [{}] if method == NONE else budgets if _has_budget(method) else groups
        for share in ffn:
            cells += [_cell(Setting(method, **share, **budget), fields, where) for budget in along]
    return tuple(cells)


def chains_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by the name of their chain, in their order."""
    chains: dict[str, list[Cell]] = {}
    for cell in cells:
        chains.setdefault(cell.setting.chain, []).append(cell)
    return chains


def middle(cells: Sequence[Cell]) -> Cell | None:
    """The cell to calibrate at: the middle one of those that need thresholds in the first chain that has any."""
    for chain in chains_of(cells).values():
        if sparse := [cell for cell in chain if cell.setting.needs_thresholds]:
            return sparse[(len(sparse) - 1) // 2]
    return None


def _cell(setting: Setting, fields: Mapping[str, Any], where: Mapping[str, Any]) -> Cell:
    known = ATTENTION_METHODS[setting.method].__dataclass_fields__ if setting.method != NONE else {}
    own = {name: value for name, value in asdict(setting).items() if name in ("keep", "k", "clusters")}
    try:
        wanted = make_wanted(
            setting.method,
            ffn="top-k" if setting.patches_ffn else "none",
            ffn_keep=setting.ffn_keep if setting.patches_ffn else None,
            ffn_k=setting.ffn_k,
            **where,
            **own,
            **{name: value for name, value in fields.items() if name in known},
        )
    except UsageError as error:
        raise UsageError(f"{setting.label}: {error}") from None
    return Cell(setting, wanted)


def _methods(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    choices = (*ATTENTION_METHODS, NONE)
    if unknown := [name for name in names if name not in choices]:
        raise UsageError(
            f"--methods: unknown method {unknown[0]!r}: it takes {', '.join(choices)}, separated by commas"
        )
    return names


def _has_budget(method: str) -> bool:
    return method != NONE and issubclass(ATTENTION_METHODS[method], Budget)


def _check_used(names: Sequence[str], fields: Mapping[str, Any], **lists: str | None) -> None:
    """UsageError for an option that none of the methods takes."""
    taken = {name for method in names if method != NONE for name in ATTENTION_METHODS[method].__dataclass_fields__}
    if not any(map(_has_budget, names)):
        taken -= {"k", "keep"}  # clustered attention's own k is another thing
    given = [*fields, *(name for name, text in lists.items() if text is not None)]
    if idle := [name for name in given if name not in taken]:
        raise UsageError(f"--{idle[0].replace('_', '-')} does not go with --methods {','.join(names)}")


def _list(option: str, text: str | None, read: Callable[[str], Number | None]) -> list[Number]:
    """The numbers of a list, the largest first, each once; none where the option was not given."""
    if text is None:
        return []
    values = set()
    for part in text.split(","):
        value = read(part.strip())
        if value is None:
            what = "fraction in (0, 1]" if read is _fraction else "whole number of at least 1"
            raise UsageError(f"{option}: {part.strip()!r} is no {what}; write a list such as {_EXAMPLES[option]}")
        values.add(value)
    return sorted(values, reverse=True)


_EXAMPLES = {
    "--keep": KEEPS,
    "--k": "256,128,64,32",
    "--clusters": CLUSTERS,
    "--ffn-keep": "1.0,0.5,0.25",
    "--ffn-k": "256,64",
}


def _fraction(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"0*[1-9][0-9]{0,15}", text, re.ASCII) else None
