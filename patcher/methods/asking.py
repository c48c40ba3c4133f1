"""When code may ask a tensor for a number or a truth value.

On a CPU the answer is there, and asking saves work that no row needs. Any other device works behind the program, which
would wait for it, and a CUDA graph cannot be recorded at all: there the general way is taken, which is right whatever
the answer.
"""

from __future__ import annotations

from torch import Tensor


def answers(tensor: Tensor) -> bool:
    """Whether a tensor may be asked, and copied to the CPU: it is there."""
    return tensor.is_cpu
