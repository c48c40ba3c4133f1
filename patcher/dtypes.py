"""Names of dtypes as a person reads them."""

from __future__ import annotations

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """As in "float32"."""
    return str(dtype).removeprefix("torch.")
