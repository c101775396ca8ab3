"""GHM-C, the gradient-harmonized classification loss (Eq. 8, 11)."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ghm.losses.elements import select
from ghm.losses.harmonized import Harmonized, Options


class GHMC(Harmonized):
    r"""L = weight / N \sum_i \beta_i CE(p_i, p_i^*), beta from the density of g = |p - p^*| (Eq. 3).

    `bins` is M, `momentum` is \alpha of Eq. 12; the rest is explained at `GradientDensity`, `scope` and
    `levels` at `Harmonized`. The paper: bins=30, momentum=0.75, strength=1, no warm-up.

    Shapes: logits, any, classes in dimension 1: (A, C), (N, C, H, W); target in [0, 1], alike, or class
    indices (A,), (N, H, W), -1 or C for background; valid bool, as logits, (A,), or as class indices;
    `level_sizes` the rows of each pyramid level. Returns a scalar. NaN that counts makes it NaN.
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(weight, bins, momentum, density, normalize, strength, strength_warmup, **options)

    def forward(
        self, input: Tensor, target: Tensor, valid: Tensor | None = None, level_sizes: Sequence[int] | None = None
    ) -> Tensor:
        x, y, mask = select(input, target, valid)
        gradient = x.detach().sigmoid().sub_(y)  # Eq. 2; its magnitude is g of Eq. 3
        weights = self.weights(gradient, None if mask is None else ~mask, level_sizes)
        return self.scale * _WeightedCrossEntropy.apply(x, y, gradient, weights)  # Eq. 8, 11


class _WeightedCrossEntropy(torch.autograd.Function):
    r"""\sum_i w_i CE(\sigma(x_i), y_i), of which the gradient p - y (Eq. 2) is already known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # What the compiler fuses into one loop; -log p of the likelier class saves it an exponential.
            ctx.save_for_backward(gradient * weights)
            likelier = (gradient + y - 0.5).abs() + 0.5
            return ((x.clamp(min=0) - x * y - likelier.log()) * weights).sum()
        ctx.save_for_backward(x, y, gradient, weights)
        # In place: memory bounds these steps. softplus(x) is x, in float64 too, from 40 on.
        return F.softplus(x, threshold=40).addcmul_(x, y, value=-1).mul_(weights).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            (harmonized,) = ctx.saved_tensors
            return upstream * harmonized, None, None, None
        x, y, gradient, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more: the weights are constant, p is not
            gradient = x.sigmoid() - y
        return upstream * (gradient * weights), None, None, None
