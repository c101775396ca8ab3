"""Online hard example mining (Shrivastava, Gupta, Girshick, CVPR 2016) for dense classification."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import require, select, world_mean


class OHEM(nn.Module):
    """Weight times the mean cross-entropy of all positives and the hardest negatives.

    `ratio` negatives are kept for each positive (`ratio` in all where a batch has no positive).

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,). Returns a scalar.
    """

    def __init__(self, ratio: float = 3.0, weight: float = 1.0) -> None:
        super().__init__()
        require(ratio > 0, "ratio", ratio, "must be above 0 negatives a positive (common: 3)")
        self.ratio, self.weight = ratio, weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, mask = select(input, target, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        positive = (y > 0).flatten()  # ignored elements have y = 0
        negative = ~positive if mask is None else mask.flatten() & ~positive
        # Rank by sorting: top-k would need the number of positives on the host.
        hardness = ce.detach().flatten().where(negative, ce.new_full((), -1.0))
        rank = torch.empty_like(hardness, dtype=torch.int64)
        order = hardness.argsort(descending=True, stable=True)
        rank[order] = torch.arange(len(order), device=order.device)
        kept = positive | (negative & (rank < self.ratio * positive.sum().clamp(min=1)))
        return self.weight * world_mean(ce.flatten(), kept)
