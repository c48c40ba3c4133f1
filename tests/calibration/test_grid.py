"""The bins and buckets that calibration counts on are fixed."""

from __future__ import annotations

import torch
from hf_sparsify.calibration.grid import BINS, BUCKETS, bins_of, buckets_of, edges


def test_edges_are_exact_and_belong_to_the_bin_below() -> None:
    grid = edges()
    assert grid.shape == (BINS + 1,)
    assert torch.equal(grid, -grid.flip(0))
    assert torch.equal(grid.float().double(), grid)
    assert bool((grid.diff() > 0).all())
    assert torch.equal(bins_of(grid[1:]), torch.arange(BINS, dtype=torch.int32))
    above = torch.nextafter(grid[1:-1].float(), torch.tensor(torch.inf))
    # What float32 cannot tell from the edge after 4 was added may stay below it.
    assert bool((bins_of(above + 1e-6 * (4 + above.abs())) == torch.arange(1, BINS)).all())


def test_widths_as_documented() -> None:
    grid = edges()
    lower = bins_of(torch.tensor([0.01, -8.0, 16.5])).long()
    assert (grid[lower + 1] - grid[lower]).tolist() == [0.0625, 0.125, 0.25]
    assert (BINS, float(grid[-1])) == (1024, 1020)


def test_every_value_is_in_its_bin() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 40
    bins, grid = bins_of(values).long(), edges().float()
    assert bool(((values > grid[bins]) & (values <= grid[bins + 1])).all())


def test_what_is_no_ordinary_number() -> None:
    values = torch.tensor([torch.inf, torch.nan, 5000.0, 0.0, -0.0, -5000.0, -torch.inf])
    assert bins_of(values).tolist() == [BINS - 1] * 3 + [BINS // 2 - 1] * 2 + [0] * 2


def test_buckets_grow_by_a_quarter() -> None:
    assert BUCKETS == 50
    buckets = buckets_of(torch.arange(2, 300_000))
    assert bool((buckets.diff() >= 0).all())
    assert int(buckets.max()) == BUCKETS - 1
    for bucket in range(20, BUCKETS - 1):
        lengths = 2 + (buckets == bucket).nonzero().flatten()
        assert int(lengths[-1]) <= 1.25 * int(lengths[0])
    assert int(buckets_of(torch.tensor(131072))) == int(buckets_of(torch.tensor(131071)))
