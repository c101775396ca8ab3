"""Smooth L1 and its smoother form, the box losses that GHM-R is compared with (Eq. 14-17)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import require, select, world_mean


def asl1(d: Tensor, mu: float) -> Tensor:
    r"""ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu (Eq. 17), elementwise."""
    return root(d, mu) - mu


def root(d: Tensor, mu: float) -> Tensor:
    r"""\sqrt{d^2 + \mu^2}, elementwise, without overflow of d^2."""
    return d.hypot(torch.full((), mu, dtype=d.dtype, device=d.device))


class ASL1(nn.Module):
    r"""Authentic smooth L1 (Eq. 17): weight times the mean of ASL_1(input - target).

    Shapes: input, target (P, 4); valid bool (P, 4) or (P,). Returns a scalar.
    """

    def __init__(self, mu: float = 0.02, weight: float = 1.0) -> None:
        super().__init__()
        require(mu > 0, "mu", mu, "must be above 0 (the paper: 0.02)")
        self.mu, self.weight = mu, weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, mask = select(input, target, valid)
        return self.weight * world_mean(asl1(x - y, self.mu), mask)


class SmoothL1(nn.Module):
    r"""SL_1(d) = d^2 / (2 \delta) if |d| <= \delta, else |d| - \delta / 2 (Eq. 15); weight times the mean.

    Shapes: input, target (P, 4); valid bool (P, 4) or (P,). Returns a scalar.
    """

    def __init__(self, delta: float = 1 / 9, weight: float = 1.0) -> None:
        super().__init__()
        require(delta > 0, "delta", delta, "must be above 0 (the paper: 1/9)")
        self.delta, self.weight = delta, weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, mask = select(input, target, valid)
        return self.weight * world_mean(F.smooth_l1_loss(x, y, beta=self.delta, reduction="none"), mask)
