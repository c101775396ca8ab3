"""Focal loss (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017), the paper's rival."""

import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import require, select, world_mean


class FocalLoss(nn.Module):
    r"""Sum of \alpha_t (1 - p_t)^\gamma CE(p, p^*), divided by the number of positive elements.

    `alpha` weighs positives, 1 - alpha negatives. gamma=0, alpha=0.5 is half the summed cross-entropy.

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,). Returns a scalar.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, weight: float = 1.0) -> None:
        super().__init__()
        require(gamma >= 0, "gamma", gamma, "must be 0 or more (Lin et al.: 2)")
        require(0 <= alpha <= 1, "alpha", alpha, "must lie in [0, 1] (Lin et al.: 0.25)")
        self.gamma, self.alpha, self.weight = gamma, alpha, weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, mask = select(input, target, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        p = x.sigmoid()
        p_t = p * y + (1 - p) * (1 - y)
        alpha_t = self.alpha * y + (1 - self.alpha) * (1 - y)
        # Away from 0, where a power below 1 has no gradient.
        loss = alpha_t * (1 - p_t).clamp(min=1e-12) ** self.gamma * ce
        return self.weight * world_mean(loss, mask, over=(y > 0).sum())
