"""GHM-R, the gradient-harmonized box regression loss (Eq. 17-19)."""

from collections.abc import Sequence
from typing import Literal, Unpack

from torch import Tensor

from ghm.losses.elements import require, select
from ghm.losses.harmonized import Harmonized, Options
from ghm.losses.smooth_l1 import asl1, root


class GHMR(Harmonized):
    r"""L = weight / N \sum_i \beta_i ASL_1(d_i) (Eq. 19), beta from the density of gr.

    gr = |d| / \sqrt{d^2 + \mu^2} (Eq. 18) is pooled over the four coordinates of all positives.
    `momentum` is \alpha of Eq. 12; the rest is explained at `GradientDensity` and `Harmonized`.

    Shapes: input, target (P, 4); valid bool (P, 4) or (P,); `level_sizes` the rows of each pyramid
    level. Returns a scalar.
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
        **options: Unpack[Options],
    ) -> None:
        require(mu > 0, "mu", mu, "must be above 0 (the paper: 0.02)")
        super().__init__(weight, bins, momentum, density, normalize, strength, strength_warmup, **options)
        self.mu = mu

    def forward(
        self, input: Tensor, target: Tensor, valid: Tensor | None = None, level_sizes: Sequence[int] | None = None
    ) -> Tensor:
        x, y, mask = select(input, target, valid)
        d = x - y
        gradient = d.detach() / root(d.detach(), self.mu)  # its magnitude is gr of Eq. 18
        weights = self.weights(gradient, None if mask is None else ~mask, level_sizes)
        return self.scale * (weights * asl1(d, self.mu)).sum()  # Eq. 19
