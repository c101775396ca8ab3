"""GHM-R, the gradient-harmonized box regression loss (Eq. 17-19)."""

from typing import Literal

from torch import Tensor, nn

from ghm.losses.density import GradientDensity
from ghm.losses.elements import require, select, world_mean
from ghm.losses.smooth_l1 import asl1


class GHMR(nn.Module):
    r"""L = weight / N \sum_i \beta_i ASL_1(d_i) (Eq. 19), beta from the density of gr.

    gr = |d| / \sqrt{d^2 + \mu^2} (Eq. 18) is pooled over the four coordinates of all positives.
    `momentum` is \alpha of Eq. 12; the rest is explained at `GradientDensity`.

    Shapes: input, target (P, 4); valid bool (P, 4) or (P,). Returns a scalar.
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.7,
        density: Literal["regions", "exact"] = "regions",
        normalize: Literal["occupied", "all"] = "occupied",
        strength: float = 1.0,
        strength_warmup: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        require(mu > 0, "mu", mu, "must be above 0 (the paper: 0.02)")
        self.density = GradientDensity(bins, momentum, density, normalize, strength, strength_warmup)
        self.mu, self.weight = mu, weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, valid = select(input, target, valid)
        d = x - y
        gr = d.detach().abs() / d.detach().hypot(d.new_tensor(self.mu))  # Eq. 18
        beta = self.density(gr, valid)
        return self.weight * world_mean((beta * asl1(d, self.mu)).sum(), valid.sum())  # Eq. 19
