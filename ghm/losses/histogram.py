"""Counting gradient norms: in unit regions (Eq. 9), and in the windows of the exact density (Eq. 4-6).

No step waits for the device: every shape is known beforehand, and nothing is read back.
"""

import torch
from torch import Tensor

from ghm.losses.elements import full_precision

# Above this many examples the windows' edges lie on a grid, which takes O(N) where sorting takes O(N log N).
SORTED_UP_TO = 2**18
# Cells of that grid: an edge is at most one and a half of them off.
GRID = 2**20
# Rows of counters, each for a run of examples: threads seldom meet in one counter. A GPU has so many threads that 256
# rows took four times as long as 16384 (32 million examples, M = 30, docs/results/2026-11-gpu.md).
ROWS = 256
ROWS_OF_GPU = 16384


def region_of(gradient: Tensor, bins: int, ignored: Tensor | None) -> Tensor:
    """Region j of each example: j / bins <= |gradient| < (j + 1) / bins; `bins` for 1, `bins + 1` for none.

    The norm j / bins, as float32 or float64 rounds it, is in region j, for every j and bins. The product
    alone may fall short of j by a rounding (1 / 49 * 49 < 1), so the factor is larger by one, and the last
    three numbers below an edge, or fewer, pass it.

    Shapes: `gradient` any, in [-1, 1]; `ignored` bool, alike. NaN is in no region, nor is what lies beyond
    1 + 1 / bins. Returns integers (N,), in the order of the elements.
    """
    norm = full_precision(gradient)
    return _cell(norm, bins * (1 + torch.finfo(norm.dtype).eps), bins, ignored)


def grid_cell_of(gradient: Tensor, ignored: Tensor | None) -> Tensor:
    """Cell of the fine grid in which |gradient| lies; else as `region_of`."""
    return _cell(full_precision(gradient), GRID, GRID, ignored)


def _cell(gradient: Tensor, factor: float, cells: int, ignored: Tensor | None) -> Tensor:
    # In place, because memory is what bounds these steps.
    scaled = (gradient * factor).abs_()
    if ignored is not None:
        scaled.masked_fill_(ignored, cells + 1)
    if torch.compiler.is_compiling():
        # The same by what the compiler makes vector instructions of.
        return torch.where(scaled < cells + 1, scaled, cells + 1).int().flatten()
    return scaled.nan_to_num_(nan=cells + 1).clamp_(max=cells + 1).long().flatten()


def histogram(cell: Tensor, cells: int) -> Tensor:
    """How many examples each cell holds: int64 (cells,), exact at any number. `cell` int64 (N,)."""
    most = ROWS if cell.device.type == "cpu" else ROWS_OF_GPU
    rows = max(min(most, len(cell) // (16 * cells)), 1)  # no more counters than they save time
    together = len(cell) // rows * rows
    body, rest = cell[:together].long().view(rows, -1), cell[together:].long()
    one = torch.ones((), dtype=torch.int64, device=cell.device)
    counts = torch.zeros(rows, cells, dtype=torch.int64, device=cell.device)
    counts = counts.scatter_add_(1, body, one.expand_as(body)).sum(0)
    return counts.scatter_add_(0, rest, one.expand_as(rest))


def of_regions(cells: Tensor) -> Tensor:
    """What the M regions hold (M,) of what each number of `region_of` holds (M + 2,): g = 1 is in the last region."""
    return torch.cat([cells[:-3], cells[-3:-1].sum(0, keepdim=True)])


def sorted_density(g: Tensor, valid: Tensor, bins: int) -> Tensor:
    r"""GD(g) of Eq. 4-6 with \epsilon = 1 / bins for each norm, over the valid ones, by sorting.

    Shapes: `g`, `valid` any, alike. Returns the density, shaped as `g`, of ignored ones too.
    """
    half = 0.5 / bins
    values = g.masked_fill(~valid, float("inf")).flatten().sort().values
    lower, upper = torch.searchsorted(values, torch.stack([g - half, g + half]).contiguous())
    length = (g + half).clamp(max=1.0) - (g - half).clamp(min=0.0)  # Eq. 6
    return (upper - lower).to(g.dtype) / length


def grid_density(counts: Tensor, bins: int) -> Tensor:
    r"""GD(g) of Eq. 4-6 with \epsilon = 1 / bins for each cell of the fine grid and for g = 1.

    Shapes: `counts` int64 (GRID + 1,), the last for g = 1. Returns float64, alike.
    """
    half = max(round(0.5 * GRID / bins), 1)
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # examples below each cell's number
    here = torch.arange(GRID + 1, device=counts.device)
    lower, upper = (here - half).clamp(min=0), (here + half).clamp(max=GRID)
    inside = below[(here + half).clamp(max=GRID + 1)] - below[lower]
    return inside.double() * GRID / (upper - lower)
