"""Binary cross-entropy, the baseline that every other classification loss reweights (Eq. 1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import select, world_mean


class CrossEntropy(nn.Module):
    r"""Weight times the mean of CE(p, p^*) over the valid elements (Eq. 1).

    The paper's baseline: weight 20 and a prior bias of 0.01 in the detector.

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,). Returns a scalar.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, mask = select(input, target, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        return self.weight * world_mean(ce, mask)
