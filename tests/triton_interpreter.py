"""What Triton's interpreter gets wrong: it multiplies the bits of bfloat16 matrices as if they were whole numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def mend_products(patching: pytest.MonkeyPatch) -> None:
    """Products of bfloat16 matrices are those of the same numbers in float32."""
    multiply = InterpreterBuilder.create_dot

    def product(self: Any, left: TensorHandle, right: TensorHandle, *more: Any) -> TensorHandle:
        return multiply(self, _widened(left), _widened(right), *more)

    patching.setattr(InterpreterBuilder, "create_dot", product)


def _widened(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return replace(handle, data=(handle.data.astype(np.uint32) << 16).view(np.float32), dtype=tl.float32)
