"""GHM-C, the gradient-harmonized classification loss (Eq. 8, 11)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.density import GradientDensity
from ghm.losses.elements import select, world_mean


class GHMC(nn.Module):
    r"""L = weight / N \sum_i \beta_i CE(p_i, p_i^*), beta from the density of g = |p - p^*| (Eq. 3).

    `bins` is M, `momentum` is \alpha of Eq. 12; the rest is explained at `GradientDensity`.
    The paper: bins=30, momentum=0.75, strength=1, no warm-up.

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,). Returns a scalar.
    """

    def __init__(
        self,
        bins: int = 30,
        momentum: float = 0.75,
        density: Literal["regions", "exact"] = "regions",
        normalize: Literal["occupied", "all"] = "occupied",
        strength: float = 1.0,
        strength_warmup: int = 0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.density = GradientDensity(bins, momentum, density, normalize, strength, strength_warmup)
        self.weight = weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        x, y, valid = select(input, target, valid)
        g = (x.detach().sigmoid() - y).abs()  # Eq. 3
        beta = self.density(g, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        return self.weight * world_mean((beta * ce).sum(), valid.sum())  # Eq. 8, 11
