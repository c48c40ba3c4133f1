"""Keys rounded to 8 bits. A decoding step reads them first: they say which keys no row can keep, and how large the
scores of the others are.

A key k has the step s = max |k| / 127 and the codes round(k / s), so that a score of the rounded key differs from the
exact one by at most |q| |k - s codes|, times the scale (Cauchy-Schwarz).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# So many keys lie side by side, dimension after dimension; csrc/attention.h says the same.
PANEL = 16
LEVELS = 127
SMALLEST_STEP = 1e-30


@dataclass
class RoundedKeys:
    """Rounded keys of a KV cache, by position in the tensor of keys.

    codes: int8 [B, G, panels, D, PANEL]. steps, errors: float32 [B, G, panels x PANEL]; an error is the norm of what
    rounding took away, a little enlarged for the rounding of sums. filled: int64 [B, 2], the positions first <= j <
    last that are rounded; nothing is known of others. The native step fills them in.
    used: whether the last call read them.
    """

    codes: Tensor
    steps: Tensor
    errors: Tensor
    filled: Tensor
    used: bool = False

    @classmethod
    def room_for(cls, key: Tensor, keys: int) -> RoundedKeys:
        """Room for `keys` keys like those of key [B, G, n, D], none of them rounded yet."""
        batch, groups, _, width = key.shape
        panels = (keys + PANEL - 1) // PANEL
        steps = torch.empty(batch, groups, panels * PANEL, device=key.device, dtype=torch.float32)
        return cls(
            torch.empty(batch, groups, panels, width, PANEL, device=key.device, dtype=torch.int8),
            steps,
            torch.empty_like(steps),
            torch.zeros(batch, 2, device=key.device, dtype=torch.int64),
        )

    @property
    def room(self) -> int:
        """How many keys there is room for."""
        return self.steps.shape[2]

    def enlarged(self, key: Tensor, keys: int) -> RoundedKeys:
        """The same with room for `keys` keys, which is more than before. key: as in room_for."""
        made = RoundedKeys.room_for(key, keys)
        made.codes[:, :, : self.codes.shape[2]] = self.codes
        made.steps[:, :, : self.room], made.errors[:, :, : self.room] = self.steps, self.errors
        made.filled = self.filled
        return made


def rounded_bytes(width: int) -> int:
    """What a rounded key takes: its codes, step and error."""
    return width + 2 * torch.float32.itemsize


def rounded(key: Tensor) -> Tensor:
    """key [..., D] as its codes have it, in float32 or its own wider dtype; NaN for a key that is not finite.

    Codes and steps are those of float32 whatever the dtype.
    """
    narrow = key.float()
    steps = (narrow.abs().amax(-1, keepdim=True) / LEVELS).clamp(min=SMALLEST_STEP)
    wide = torch.promote_types(key.dtype, torch.float32)
    made = torch.round(narrow / steps).to(wide) * steps.to(wide)
    return made.masked_fill(~narrow.isfinite().all(-1, keepdim=True), torch.nan)
