"""Counting gradient norms: regions at every edge, exact counts, and the windows of Eq. 4-6; against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses.histogram import (
    GRID,
    ROWS,
    grid_cell_of,
    grid_density,
    histogram,
    region_of,
    sorted_density,
)

modest = settings(max_examples=30, deadline=None)
FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
EVERY_M = range(1, 258)


@pytest.fixture(params=["eager", "compiled"])
def _path(request, monkeypatch):
    """Both ways to one result: that of eager mode, and that which torch.compile is given."""
    if request.param == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


both_paths = pytest.mark.usefixtures("_path")


def norms(count, seed=0, dtype=torch.float64):
    """Gradient norms with the crowd near 0 and the small one near 1 that a detector shows."""
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(count, generator=generator, dtype=dtype) ** 4
    return torch.where(torch.rand(count, generator=generator) < 0.9, easy, 1 - easy)


def edges(bins, dtype):
    """j/M for j = 0..M, as the type rounds it."""
    return (torch.arange(bins + 1, dtype=torch.float64) / bins).to(dtype)


def loop_density(g, valid, bins):
    """#{k: g_i - e/2 <= g_k < g_i + e/2} / l(g_i), e = 1/M (Eq. 4-6), pair by pair."""
    half, counted = 0.5 / bins, [value for value, is_valid in zip(g, valid, strict=True) if is_valid]
    near = [sum(value - half <= other < value + half for other in counted) for value in g]
    lengths = [min(value + half, 1.0) - max(value - half, 0.0) for value in g]
    return [number / length for number, length in zip(near, lengths, strict=True)]


def on_grid(cells):
    """The norm of each grid cell, for the cells given; exact in float64."""
    return torch.tensor(cells, dtype=torch.float64) / GRID


def grid_density_of(g, bins):
    """Of each norm, by way of the grid."""
    cell = grid_cell_of(g, None)
    return grid_density(histogram(cell, GRID + 2)[:-1], bins)[cell.long()]


# Regions


@both_paths
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_edge_opens_its_region(dtype):
    """Of r_j = [j e, (j + 1) e), above Eq. 9; 0 lies in the first, 1 in one behind the last."""
    for bins in EVERY_M:
        for sign in (1, -1):
            assert region_of(sign * edges(bins, dtype), bins, None).tolist() == list(range(bins + 1)), bins


@both_paths
@pytest.mark.parametrize("dtype", HALVES)
def test_a_norm_in_half_precision_is_the_number_that_it_is(dtype):
    """So 1/3, which float16 rounds down, is in the first of three regions; what it can say is an edge is one."""
    for bins in EVERY_M:
        norms = edges(bins, dtype)
        assert region_of(norms, bins, None).tolist() == region_of(norms.double(), bins, None).tolist(), bins
    for bins in (1, 2, 4, 8, 16, 32, 64, 128):
        assert region_of(edges(bins, dtype), bins, None).tolist() == list(range(bins + 1)), bins


@both_paths
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_fourth_number_below_an_edge_is_below_it(dtype):
    for bins in EVERY_M:
        below = edges(bins, dtype)[1:]
        for _ in range(4):
            below = torch.nextafter(below, below.new_zeros(()))
        assert region_of(below, bins, None).tolist() == list(range(bins)), bins


@both_paths
@pytest.mark.parametrize("dtype", HALVES)
def test_a_norm_of_half_precision_below_an_edge_is_below_it(dtype):
    for bins in EVERY_M:
        below = (edges(bins, torch.float64)[1:] * (1 - 8 * torch.finfo(dtype).eps)).to(dtype)
        assert (region_of(below, bins, None).long() < torch.arange(1, bins + 1)).all(), bins


@both_paths
@pytest.mark.parametrize("bins", [1, 10, 30, 100])
@pytest.mark.parametrize("value", [math.nan, math.inf, 2.001, 1e30])
def test_nan_and_what_lies_beyond_one_by_a_region_is_in_no_region(value, bins):
    assert region_of(torch.tensor([value, 0.5, -value]), bins, None).tolist() == [bins + 1, bins // 2, bins + 1]
    assert grid_cell_of(torch.tensor([value, 0.5, -value]), None).tolist() == [GRID + 1, GRID // 2, GRID + 1]


@both_paths
def test_ignored_norms_are_in_no_region_whatever_they_are():
    g = torch.tensor([0.0, 0.5, 1.0, 0.5, math.nan, math.inf])
    ignored = torch.tensor([True, True, True, False, True, True])
    assert region_of(g, 10, ignored).tolist() == [11, 11, 11, 5, 11, 11]
    assert grid_cell_of(g, ignored).tolist() == [GRID + 1] * 3 + [GRID // 2] + [GRID + 1] * 2


@both_paths
@pytest.mark.parametrize("dtype", HALVES)
def test_grid_cells_of_half_precision_norms_are_those_of_the_same_norms_in_full(dtype):
    g = norms(500).to(dtype)
    g[:4] = torch.tensor([0.0, 1.0, math.nan, 1.5])
    ignored = torch.arange(500) % 7 == 6
    assert torch.equal(grid_cell_of(g, ignored), grid_cell_of(g.double(), ignored))


@both_paths
@pytest.mark.parametrize("bins", [1, 3, 10, 30, 100])
def test_regions_equal_a_loop(bins):
    g = norms(300) * torch.tensor([1.0, -1.0]).repeat(150)
    wanted = [next(j for j in range(bins) if j / bins <= abs(value) < (j + 1) / bins) for value in g.tolist()]
    assert region_of(g, bins, None).tolist() == wanted
    assert region_of(g.float(), bins, None).tolist() == wanted


@pytest.mark.parametrize("cell_of", [lambda g, ignored: region_of(g, 10, ignored), grid_cell_of])
@both_paths
def test_any_memory_layout_keeps_the_order_and_the_input_stays_as_it_is(cell_of):
    g = norms(2 * 3 * 4 * 5).float().view(2, 3, 4, 5)
    ignored = g > 0.5
    wanted = cell_of(g.flatten(), ignored.flatten())
    last = torch.channels_last
    for values, mask in (
        (g.to(memory_format=last), ignored),
        (g, ignored.to(memory_format=last)),
        (g.to(memory_format=last), ignored.to(memory_format=last)),
        (g.transpose(0, 3).contiguous().transpose(0, 3), ignored),
        (torch.stack([g, -g], dim=-1)[..., 0], torch.stack([ignored, ~ignored], dim=-1)[..., 0]),
    ):
        before = values.clone()
        assert torch.equal(cell_of(values, mask), wanted)
        assert torch.equal(values, before)
    assert torch.equal(cell_of(g.transpose(0, 3), None), cell_of(g.transpose(0, 3).contiguous(), None))
    # Expanded: one row of values or of the mask for all.
    row, few = g[0, 0, 0], ignored[:, :1]
    assert torch.equal(cell_of(row.expand(6, 5), None), cell_of(row.repeat(6), None))
    assert torch.equal(cell_of(g, few.expand_as(g)), cell_of(g, few.expand_as(g).contiguous()))


@modest
@given(
    values=st.lists(st.floats(width=32) | st.floats(-1, 1, width=32) | st.floats(-3, 3, width=32), max_size=60),
    bins=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_every_norm_that_counts_is_counted_once(values, bins, seed):
    g = torch.tensor(values, dtype=torch.float32)
    ignored = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.3
    # What is beyond 1 by less than a region is left open.
    g = g.where((g.abs() <= 1) | (g.abs() > 2.001) | g.isnan(), 1.0)
    wanted = int((~ignored & (g.abs() <= 1)).sum())
    assert histogram(region_of(g, bins, ignored), bins + 2)[:-1].sum() == wanted
    assert histogram(grid_cell_of(g, ignored), GRID + 2)[:-1].sum() == wanted


# Counts


@pytest.mark.parametrize("cells", [1, 3, 32, 2**16])
@pytest.mark.parametrize("number", [0, 1, 47, 48, 49, 511, 5003, 16 * 32 * ROWS, 16 * 32 * ROWS + ROWS - 1])
def test_counts_are_those_of_bincount_at_any_number_of_examples(number, cells):
    """R_j of Eq. 9; the number need not be a multiple of the rows of counters."""
    cell = torch.randint(cells, (number,), generator=torch.Generator().manual_seed(number))
    wanted = torch.bincount(cell, minlength=cells)
    for kind in (torch.int64, torch.int32):
        counts = histogram(cell.to(kind), cells)
        assert counts.dtype == torch.int64
        assert torch.equal(counts, wanted)


@pytest.mark.parametrize("cells", [3, GRID + 2])
def test_counts_stay_exact_beyond_what_float32_can_count(cells):
    number = 2**24 + 1
    cell = torch.ones((), dtype=torch.int64).expand(number)
    assert histogram(cell, cells)[:3].tolist() == [0, number, 0]


# The exact density


@pytest.mark.parametrize("bins", [1, 2, 10, 30, 100])
@pytest.mark.parametrize("seed", range(3))
def test_sorted_density_is_eq_4_to_6_pair_by_pair(bins, seed):
    g = norms(150, seed)
    g[:2] = torch.tensor([0.0, 1.0])
    valid = torch.rand(150, generator=torch.Generator().manual_seed(seed)) < 0.7
    wanted = loop_density(g.tolist(), valid.tolist(), bins)
    assert sorted_density(g, valid, bins).tolist() == pytest.approx(wanted, rel=1e-12)
    shaped = sorted_density(g.view(10, 15).t(), valid.view(10, 15).t(), bins)
    assert shaped.t().flatten().tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("way", [lambda g, bins: sorted_density(g, g >= 0, bins), grid_density_of])
def test_a_window_is_closed_below_and_open_above(way):
    """Eq. 5: g - e/2 <= g_k < g + e/2; all values are exact in binary, windows of width 1/2."""
    g = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    # 0.25 sees itself alone, every other one also the one below it; the window of 1 is cut to half.
    assert way(g, 2).tolist() == [1 / 0.5, 2 / 0.5, 2 / 0.5, 2 / 0.25]


@pytest.mark.parametrize("way", [lambda g, bins: sorted_density(g, g >= 0, bins), grid_density_of])
@pytest.mark.parametrize("bins", [1, 2, 8, 64])
def test_windows_are_cut_at_zero_and_at_one(way, bins):
    """Eq. 6, of examples that each see themselves alone."""
    for value in (0.0, 0.125 / bins, 0.5, 1 - 0.125 / bins, 1.0):
        length = min(value + 0.5 / bins, 1.0) - max(value - 0.5 / bins, 0.0)
        assert way(torch.tensor([value], dtype=torch.float64), bins).item() == 1 / length


@pytest.mark.parametrize("bins", [1, 2, 4, 64, 1024])
def test_the_grid_gives_eq_4_to_6_exactly_for_norms_that_lie_on_it(bins):
    generator = torch.Generator().manual_seed(bins)
    anywhere = torch.randint(GRID + 1, (2000,), generator=generator).tolist()
    # So that windows' edges meet examples, and the cells beside them.
    at_edges = [max(min(step * GRID // (4 * bins) + by, GRID), 0) for step in range(4 * bins + 1) for by in (-1, 0, 1)]
    g = on_grid(anywhere + at_edges + [0, 0, GRID, GRID])
    assert torch.equal(grid_density_of(g, bins), sorted_density(g, g >= 0, bins))


@pytest.mark.parametrize("bins", [1, 3, 10, 30, 100])
def test_the_grid_is_near_eq_4_to_6_for_any_norms(bins):
    g = norms(50_000, seed=bins)
    g[:2] = torch.tensor([0.0, 1.0])
    found, exact, half, off = grid_density_of(g, bins), sorted_density(g, g >= 0, bins), 0.5 / bins, 1.5 / GRID
    assert (found / exact - 1).abs().mean() < 3e-4
    # No edge is off by more than one and a half cells.
    ordered = g.sort().values
    narrow, wide = (
        torch.searchsorted(ordered, g + half + by) - torch.searchsorted(ordered, g - half - by) for by in (-off, off)
    )
    length = (g + half).clamp(max=1) - (g - half).clamp(min=0)
    assert (narrow / (length + 2 * off) <= found).all()
    assert (found <= wide / (length - 2 * off)).all()


def test_a_window_narrower_than_the_grid_still_holds_its_own_example():
    g = on_grid([0, 5, 6, GRID])
    assert torch.isfinite(1 / grid_density_of(g, 4 * GRID)).all()
