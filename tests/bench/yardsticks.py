"""What GHM-C is measured against: the loop over regions that public code runs, and its plain vectorization."""

import torch
import torch.nn.functional as F
from torch import Tensor


class RegionLoop:
    """GHM-C as public detectors have it: a mask, a count read back and a masked assignment for each region."""

    def __init__(self, bins: int, momentum: float = 0.75) -> None:
        self.bins, self.momentum = bins, momentum
        self.edges = [j / bins for j in range(bins)] + [1 + 1e-6]
        self.average = [0.0] * bins

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        g = (x.sigmoid().detach() - y).abs()
        valid = torch.ones_like(x) > 0
        total, occupied = max(valid.float().sum().item(), 1.0), 0
        weights = torch.zeros_like(x)
        for j in range(self.bins):
            inside = (g >= self.edges[j]) & (g < self.edges[j + 1]) & valid
            number = inside.sum().item()
            if number > 0:
                self.average[j] = self.momentum * self.average[j] + (1 - self.momentum) * number
                weights[inside] = total / self.average[j]
                occupied += 1
        return F.binary_cross_entropy_with_logits(x, y, weights / max(occupied, 1), reduction="sum") / total


def plain(x: Tensor, y: Tensor, bins: int = 30) -> Tensor:
    """The same without a loop, moving average or mask: bincount, a lookup, and torch's weighted loss."""
    g = (x.detach().sigmoid() - y).abs()
    region = (g * bins).long().clamp_(max=bins - 1)
    counts = torch.bincount(region.flatten(), minlength=bins)
    table = x.numel() / (counts.clamp(min=1) * (counts > 0).sum())
    return F.binary_cross_entropy_with_logits(x, y, weight=table[region])


def weighing(x: Tensor, y: Tensor, table: Tensor, region: Tensor) -> Tensor:
    """A floor for stock operators: torch's loss, one count and one lookup, the regions given for free."""
    torch.bincount(region, minlength=len(table))
    return F.binary_cross_entropy_with_logits(x, y, weight=table.index_select(0, region))
