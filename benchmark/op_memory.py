"""What one attention call needs of memory beside its inputs, each way in a process of its own: peaks only rise.

python -m hf_sparsify.benchmark.op_memory top-k 16384 2    # way, tokens, threads; prints bytes
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import torch

from ..patcher.kernels import clusters, rows
from ..patcher.methods import AttentionInputs, Clustered, TopK, TopTheta
from ..patcher.thresholds import ModuleThresholds
from .op_inputs import attention, dense
from .peak import forget_peak, peak, used

HEADS = 8
DENSE = "SDPA"


def extra_bytes(way: str, tokens: int, threads: int) -> int:
    """Of one call, its output included. Raises CalledProcessError where the call fails."""
    command = [sys.executable, "-m", __name__, way, str(tokens), str(threads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _top_theta(inputs: AttentionInputs) -> object:
    """With the threshold that a tenth of standard normal scores exceeds; fitting one would move the peak."""
    keys = inputs.key.shape[2]
    theta = torch.full((HEADS, 1), 1.28 - 0.5 - math.log(keys))
    table = ModuleThresholds(torch.tensor([float(keys)]), theta, 1, keys)
    return rows.attend(inputs, TopTheta(keep=0.1), table)


WAYS: dict[str, Callable[[AttentionInputs], object]] = {
    DENSE: dense,
    "top-k": lambda inputs: rows.attend(inputs, TopK(k=64)),
    "top-theta": _top_theta,
    "clustered": lambda inputs: clusters.attend(inputs, Clustered()),
}


def main(way: str, tokens: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    WAYS[way](attention(256, 256, HEADS, HEADS))  # what the first call of all loads
    inputs = attention(int(tokens), int(tokens), HEADS, HEADS)
    device = inputs.query.device
    before = used(device)
    forget_peak(device)
    WAYS[way](inputs)
    print((peak(device) or 0) - (before or 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
