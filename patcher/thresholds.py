"""The threshold table of top-theta: one threshold per module, query head and row length; lookup and file format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_file, write_file
from ..strict_json import check_texts, shortened, shown
from .methods import asking
from .methods.budget import MOST_COUNT
from .methods.top_theta import PLACEMENTS
from .tensor_file import MALFORMED, read_content, read_tensors, reason, tensor_bytes

FORMAT = "hf_sparsify.thresholds"
FORMAT_VERSION = 2
CPU = torch.device("cpu")
MOST_BYTES = 2**26  # of a file; 80 layers of 64 heads with every bucket of row lengths have about 2 MB

# A recipe without its thresholds cannot be loaded, so it cannot be calibrated either.
AGAIN = "make the recipe anew with `sparsify patch --force` and `sparsify calibrate`"


@dataclass
class ModuleThresholds:
    """Thresholds of one module.

    lengths: float32 [T], ascending row lengths that were calibrated (the mean length of each bucket of rows).
    theta: float32 [H, T], in units of the score: what `placement` compares has to be greater for a key to be kept (for
    post-softmax it is the logarithm of a weight). shortest, longest: the range of row lengths seen.
    Between two calibrated lengths theta is interpolated linearly in log length; a row outside the range has none,
    whatever the placement, and uses its own exact top-k.
    scale: the factor on query . key that the scores had; nature: of the attention, e.g. "causal self-attention"; both
    None where they are not known. dropped: float32 [H, T], the mean sum of exp(score - row maximum) over dropped keys,
    for denominator "offline".
    """

    lengths: Tensor
    theta: Tensor
    shortest: int
    longest: int
    placement: str = "post-softmax"
    scale: float | None = None
    nature: str | None = None
    dropped: Tensor | None = None
    _on_device: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _copies: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _numbers: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.theta.ndim != 2 or self.lengths.ndim != 1 or self.theta.shape[1] != len(self.lengths):
            raise DataError("a threshold table needs lengths [T] and theta [H, T] with the same T")
        if not (self.theta.is_floating_point() and self.lengths.is_floating_point()):
            raise DataError("a threshold table needs floating-point numbers")
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in (self.shortest, self.longest))
        if len(self.lengths) == 0 or not whole or not 1 <= self.shortest <= self.longest <= MOST_COUNT:
            raise DataError("a threshold table needs at least one calibrated row length")
        if asking.answers(self.theta) and not self._ascends():
            raise DataError("a threshold table needs ascending lengths and finite thresholds")
        if self.placement not in PLACEMENTS or not _is_number(self.scale) or not isinstance(self.nature, str | None):
            raise DataError(
                f"a threshold table cannot have placement {shown(self.placement)}, scale {shown(self.scale)} and "
                f"nature {shown(self.nature)}"
            )
        if self.dropped is not None and not _is_mass(self.dropped, self.theta):
            raise DataError("the dropped mass of a threshold table needs the shape of theta and no negative value")

    def __getstate__(self) -> dict[str, Any]:
        """Copies stay behind: who reads a pickled model may not have their device."""
        return {**self.__dict__, "_on_device": {}, "_copies": {}, "_numbers": {}}

    def _ascends(self) -> bool:
        """Whether all numbers are finite and the lengths ascend from 1 on. On a GPU it is a copy of a checked table."""
        good = torch.isfinite(self.theta).all() & torch.isfinite(self.lengths).all() & (self.lengths >= 1).all()
        return bool(good) and not bool((self.lengths.diff() <= 0).any())

    @property
    def heads(self) -> int:
        return self.theta.shape[0]

    def lookup(self, lengths: Tensor) -> Tensor:
        """int64 [B or 1, H or 1, c] -> float32 [B or 1, H, c]; NaN for a row length outside the calibrated range."""
        return self._interpolated(0, lengths)

    def lookup_dropped(self, lengths: Tensor) -> Tensor:
        """The dropped mass, as lookup. DataError if the table has none."""
        if self.dropped is None:
            raise DataError("the thresholds were calibrated without the offline denominator: calibrate them with it")
        return self._interpolated(1, lengths)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """lengths, theta and, if there is one, dropped on a device. Outside a compiler they are copied there once."""
        found = self._copies.get(device)
        if found is None:
            parts = (self.lengths, self.theta) if self.dropped is None else (self.lengths, self.theta, self.dropped)
            found = [part.to(device) for part in parts]
            if not torch.compiler.is_compiling():
                self._copies[device] = found
        return found

    def copy_to(self, device: torch.device) -> None:
        """Copies all that lookups and compiled graphs need to a device, so that no call has to: a copy waits for it."""
        self.tensors(device)
        self._tensors(device)

    def numbers(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log lengths, theta and dropped mass (None: none), contiguous float32 on a device, for a kernel."""
        found = self._numbers.get(device)
        if found is None:
            lengths, theta, *dropped = (part.float().contiguous() for part in self._tensors(device))
            self._numbers[device] = found = lengths, theta, dropped[0] if dropped else None
        return found

    def addresses(self) -> tuple[int, int, int]:
        """Where the numbers for a kernel lie on the CPU (0: none)."""
        lengths, theta, dropped = self.numbers(CPU)
        return lengths.data_ptr(), theta.data_ptr(), 0 if dropped is None else dropped.data_ptr()

    def outside(self, lengths: Tensor) -> Tensor:
        """bool like lengths: rows that are not empty and have no threshold."""
        return ((lengths < self.shortest) | (lengths > self.longest)) & (lengths > 0)

    def _interpolated(self, which: int, lengths: Tensor) -> Tensor:
        known, *tables = self._tensors(lengths.device)
        table = tables[which]
        wanted = lengths.clamp(min=1).log()
        last = len(known) - 1
        right = torch.searchsorted(known, wanted).clamp(1, max(last, 1)).clamp(max=last)
        left = (right - 1).clamp(min=0)
        share = ((wanted - known[left]) / (known[right] - known[left]).clamp(min=1e-12)).clamp(0, 1)
        found = torch.lerp(_at(table, left), _at(table, right), share)
        return found.masked_fill((lengths < self.shortest) | (lengths > self.longest), torch.nan)

    def _tensors(self, device: torch.device) -> list[Tensor]:
        """Log lengths, theta and, if there is one, the dropped mass on a device; moved once."""
        if device not in self._on_device:
            lengths, *tables = self.tensors(device)
            self._on_device[device] = [lengths.log(), *tables]
        return self._on_device[device]


def _is_number(scale: Any) -> bool:
    """Whether it can be a scale: a finite number, or None."""
    return scale is None or (isinstance(scale, float | int) and not isinstance(scale, bool) and math.isfinite(scale))


def _is_mass(dropped: Tensor, theta: Tensor) -> bool:
    if dropped.shape != theta.shape or not asking.answers(dropped):
        return dropped.shape == theta.shape
    return bool((dropped >= 0).all()) and bool(torch.isfinite(dropped).all())


def _at(table: Tensor, column: Tensor) -> Tensor:
    """table [H, T] at columns [B, H or 1, c] -> [B, H, c]."""
    heads = table.shape[0]
    return (
        table.gather(1, column.expand(-1, heads, -1).transpose(0, 1).reshape(heads, -1))
        .view(heads, column.shape[0], -1)
        .transpose(0, 1)
    )


def save_thresholds(tables: Mapping[str, ModuleThresholds], path: Path) -> None:
    """Writes thresholds_bytes in one step. OSError if that fails."""
    write_file(path, thresholds_bytes(tables))


def thresholds_bytes(tables: Mapping[str, ModuleThresholds]) -> bytes:
    """One safetensors file: `NAME.lengths`, `NAME.theta` and, if any, `NAME.dropped` for every module name."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, Any] = {}
    for name, table in tables.items():
        modules[name] = {
            "shortest": table.shortest,
            "longest": table.longest,
            "placement": table.placement,
            "scale": table.scale,
            "nature": table.nature,
        }
        for part in ("lengths", "theta", "dropped"):
            tensor = getattr(table, part)
            if tensor is not None:
                tensors[f"{name}.{part}"] = tensor.float().contiguous()
    return tensor_bytes(tensors, {"format": FORMAT, "version": FORMAT_VERSION, "modules": modules})


def load_thresholds(path: Path) -> dict[str, ModuleThresholds]:
    """The tables of a file that save_thresholds wrote; DataError names the file and what is wrong with it."""
    try:
        data = read_file(path, MOST_BYTES)
    except (OSError, DataError) as error:
        raise unreadable(path, error) from None
    return parse_thresholds(data, path)


def parse_thresholds(data: bytes, path: Path) -> dict[str, ModuleThresholds]:
    """The tables in the bytes of a file; errors as in load_thresholds."""
    try:
        content = read_content(data)
        if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
            raise DataError(f"it is not a threshold file of version {FORMAT_VERSION}")
        check_texts(content)
        tensors = read_tensors(data)
        return {name: ModuleThresholds(**_parts(tensors, name), **facts) for name, facts in content["modules"].items()}
    except MALFORMED as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: BaseException) -> DataError:
    """The sentence for a file of thresholds that cannot be used."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is missing: {AGAIN}")
    return DataError(f"{path} cannot be read ({reason(error)}): {AGAIN}")


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    found = {part: tensors[f"{name}.{part}"] for part in ("lengths", "theta")}
    if f"{name}.dropped" in tensors:
        found["dropped"] = tensors[f"{name}.dropped"]
    if any(tensor.dtype != torch.float32 for tensor in found.values()):
        raise DataError(f"the thresholds of {shortened(name)} are not float32")
    return found
