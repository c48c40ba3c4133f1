"""Sizes of tiles and grids, as the program that starts a kernel works them out.

Triton has functions of these names for inside a kernel. Outside they take microseconds a call.
"""

from __future__ import annotations

# Programs that keep a large GPU busy: two for each of 132 multiprocessors.
PROGRAMS = 264


def padded(width: int) -> int:
    """Elements of a row as a tile has them: a power of 2 that tl.dot takes."""
    return max(16, 1 << (width - 1).bit_length())


def cdiv(total: int, size: int) -> int:
    """How many pieces of a size cover a total."""
    return -(-total // size)
