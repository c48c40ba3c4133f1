"""The threshold table of top-theta: one threshold per module, query head and row length; lookup and file format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError

FORMAT = "hf_sparsify.thresholds"
FORMAT_VERSION = 1

# A recipe without its thresholds cannot be loaded, so it cannot be calibrated either.
AGAIN = "make the recipe anew with `sparsify patch --force` and `sparsify calibrate`"


@dataclass
class ModuleThresholds:
    """Thresholds of one module.

    lengths: float32 [T], ascending row lengths that were calibrated (the mean length of each bucket of rows).
    theta: float32 [H, T], a score is kept when it is greater. shortest, longest: the range of row lengths seen.
    Between two calibrated lengths theta is interpolated linearly in log length; a row outside the range has none.
    """

    lengths: Tensor
    theta: Tensor
    shortest: int
    longest: int

    def __post_init__(self) -> None:
        if self.theta.ndim != 2 or self.lengths.ndim != 1 or self.theta.shape[1] != len(self.lengths):
            raise DataError("a threshold table needs lengths [T] and theta [H, T] with the same T")
        if len(self.lengths) == 0 or not 1 <= self.shortest <= self.longest:
            raise DataError("a threshold table needs at least one calibrated row length")
        good = torch.isfinite(self.theta).all() & torch.isfinite(self.lengths).all() & (self.lengths >= 1).all()
        if not bool(good) or bool((self.lengths.diff() <= 0).any()):
            raise DataError("a threshold table needs ascending lengths and finite thresholds")
        self._by_length: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.theta.shape[0]

    def lookup(self, lengths: Tensor) -> Tensor:
        """int64 [B or 1, H or 1, c] -> float32 [B or 1, H, c]; NaN for a row length outside the calibrated range."""
        table = self._by_length
        if table is None or table.device != lengths.device:
            table = self._by_length = self._expand().to(lengths.device)
        outside = table.shape[1] - 1
        column = torch.where((lengths >= self.shortest) & (lengths <= self.longest), lengths - self.shortest, outside)
        if column.shape[1] == 1:
            return table[:, column[:, 0]].transpose(0, 1)
        return (
            table.gather(1, column.transpose(0, 1).reshape(self.heads, -1))
            .view(self.heads, column.shape[0], -1)
            .transpose(0, 1)
        )

    def _expand(self) -> Tensor:
        """theta at every length of the range, [H, longest - shortest + 2]; the last column is NaN, for "outside"."""
        wanted = torch.arange(self.shortest, self.longest + 1).log()
        known = self.lengths.log()
        right = torch.searchsorted(known, wanted).clamp(1, max(len(known) - 1, 1)).clamp(max=len(known) - 1)
        left = (right - 1).clamp(min=0)
        gap = (known[right] - known[left]).clamp(min=1e-12)
        share = ((wanted - known[left]) / gap).clamp(0, 1)
        theta = torch.lerp(self.theta[:, left], self.theta[:, right], share)
        return torch.cat([theta, theta.new_full((self.heads, 1), torch.nan)], 1)


def save_thresholds(tables: Mapping[str, ModuleThresholds], path: Path) -> None:
    """Writes one safetensors file: `NAME.lengths`, `NAME.theta` and `NAME.range` for every module name."""
    tensors: dict[str, Tensor] = {}
    for name, table in tables.items():
        tensors[f"{name}.lengths"] = table.lengths.float().contiguous()
        tensors[f"{name}.theta"] = table.theta.float().contiguous()
        tensors[f"{name}.range"] = torch.tensor([table.shortest, table.longest])
    save_file(
        tensors, path, metadata={"format": FORMAT, "version": str(FORMAT_VERSION), "modules": json.dumps(list(tables))}
    )


def load_thresholds(path: Path) -> dict[str, ModuleThresholds]:
    """The tables of a file that save_thresholds wrote; DataError names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != str(FORMAT_VERSION):
                raise DataError(f"{path} is not a threshold file of version {FORMAT_VERSION}: {AGAIN}")
            return {name: _read(file, name) for name in json.loads(metadata["modules"])}
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {AGAIN}") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{path}: {error}") from None
        raise DataError(f"{path} cannot be read ({error}): {AGAIN}") from None


def _read(file: safe_open, name: str) -> ModuleThresholds:
    shortest, longest = file.get_tensor(f"{name}.range").tolist()
    return ModuleThresholds(file.get_tensor(f"{name}.lengths"), file.get_tensor(f"{name}.theta"), shortest, longest)
