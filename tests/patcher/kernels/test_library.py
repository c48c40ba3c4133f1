"""The native library: beside torch in one process, and how it takes its arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hf_sparsify.patcher.kernels.library import native

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built, or switched off")

CALLS = """
import os
from pathlib import Path
import torch
from hf_sparsify.patcher.kernels import clusters, rows
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, RowRanges, TopK

def libraries():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[-1] for line in lines if "libgomp" in line})

def threads():
    return len(os.listdir("/proc/self/task"))

def run(count):
    torch.set_num_threads(count)
    torch.mm(torch.ones(600, 600), torch.ones(600, 600))
    before = threads()
    for queries in (1, 2000):
        query, key, value = (torch.randn(1, 4, n, 64) for n in (queries, 2000, 2000))
        inputs = AttentionInputs(query, key, value, RowRanges.all_keys(queries, 2000), scale=0.125)
        rows.attend(inputs, TopK(k=8))
    clusters.attend(inputs, Clustered())
    return threads() - before

print("libraries", libraries())
print("new", run(1), run(3), run(1))
print("libraries", libraries())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_are_torchs_own() -> None:
    """One OpenMP library serves both, and a call uses the threads that torch was given, which are there already."""
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["libraries 1", "new 0 0 0", "libraries 1"]


def test_arguments_may_stand_in_tuples_and_are_counted() -> None:
    library, data = native(), torch.zeros(4)
    place = (data.data_ptr(), 4, 1, 4)  # one piece of four bytes
    copy = data.data_ptr()
    assert library is not None
    for given in ((*place, copy), (place, copy), ((), place[:1], place[1:], (copy,), ())):
        assert library.same_pieces(*given) is True
    for few in ((), (place,), (place, ())):
        with pytest.raises(TypeError, match="too few arguments"):
            library.same_pieces(*few)
    for many in ((place, copy, 1), (place, (copy, 1))):
        with pytest.raises(TypeError, match="too many arguments"):
            library.same_pieces(*many)
    with pytest.raises(TypeError, match="NoneType"):
        library.same_pieces(place, None)
