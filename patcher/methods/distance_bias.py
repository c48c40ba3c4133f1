"""A position bias that knows only the distance from a query to a key, such as T5's: one number per head and distance.

Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020 (arXiv
1910.10683), section 2.1. As a matrix it is Toeplitz, so that its products are convolutions; no (queries x keys) tensor
is needed for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class DistanceBias:
    """by_distance: [B or 1, H or 1, q + n - 1], whose entry (j - i) + (q - 1) is the bias of query i and key j, both
    counted from 0. queries: q.

    What is made of it is differentiable in by_distance.
    """

    by_distance: Tensor
    queries: int

    @property
    def keys(self) -> int:
        return self.by_distance.shape[-1] - self.queries + 1

    def to(self, like: Tensor) -> DistanceBias:
        """On the device and in the dtype of a tensor."""
        return replace(self, by_distance=self.by_distance.to(like))

    def rows(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """The bias of the queries start..stop and the keys low..high, [B or 1, H or 1, stop - start, high - low]."""
        nearest = self.by_distance[..., low + self.queries - stop : high - 1 + self.queries - start]
        return nearest.unfold(-1, high - low, 1).flip(-2)  # the last query's row comes first

    def whole(self) -> Tensor:
        """The matrix itself, [B or 1, H or 1, q, n]: quadratic in length."""
        return self.rows(0, self.queries, 0, self.keys)

    def at(self, keys: Tensor) -> Tensor:
        """The bias of each query and some keys of its own, int64 [B, H, q, k], alike."""
        last = torch.arange(self.queries - 1, -1, -1, device=keys.device).unsqueeze(-1)
        places = (keys + last).flatten(2)
        return self.by_distance.expand(*keys.shape[:2], -1).gather(-1, places).view(keys.shape)

    def between(self, index: int, start: int, stop: int) -> DistanceBias:
        """Of the tokens start..stop of one sequence, where queries and keys are the same tokens."""
        reach, middle = stop - start, self.queries - 1
        index = min(index, len(self.by_distance) - 1)
        return DistanceBias(self.by_distance[index : index + 1, :, middle - reach + 1 : middle + reach], reach)

    def times(self, matrix: Tensor) -> Tensor:
        """bias @ matrix: [n, F] -> [B or 1, H or 1, q, F] in the dtype of matrix."""
        size = _enough(self.by_distance)
        spectrum = _spectrum(matrix.t(), size).conj()
        heads = [
            torch.fft.irfft(_spectrum(one, size) * spectrum, size)[..., : self.queries].flip(-1).mT.to(matrix)
            for one in self.by_distance.unsqueeze(2).unbind(1)
        ]
        return torch.stack(heads, 1)

    def under(self, rows: Tensor) -> Tensor:
        """rows @ bias: [B, H, C, q] -> [B, H, C, n] in the dtype of rows."""
        size = _enough(self.by_distance)
        all_heads = self.by_distance.expand(-1, rows.shape[1], -1).unsqueeze(2).unbind(1)
        heads = [
            torch.fft.irfft(_spectrum(some, size) * _spectrum(one, size), size)[
                ..., self.queries - 1 : self.queries - 1 + self.keys
            ].to(rows)
            for some, one in zip(rows.unbind(1), all_heads, strict=True)
        ]
        return torch.stack(heads, 1)


def bias_rows(bias: Tensor | DistanceBias, start: int, stop: int, low: int, high: int) -> Tensor:
    """The bias of the queries start..stop and the keys low..high, [B or 1, H or 1, stop - start, high - low]."""
    return bias.rows(start, stop, low, high) if isinstance(bias, DistanceBias) else bias[:, :, start:stop, low:high]


# A sum over 16k keys in float32 would lose digits that the softmax sees. One head at a time: spectra are large.


def _spectrum(numbers: Tensor, size: int) -> Tensor:
    exact = torch.float32 if numbers.device.type == "mps" else torch.float64
    return torch.fft.rfft(numbers.to(exact), size)


def _enough(by_distance: Tensor) -> int:
    """A size, quick to transform, in which what wraps around touches nothing that is read."""
    return 1 << (by_distance.shape[-1] - 1).bit_length()
