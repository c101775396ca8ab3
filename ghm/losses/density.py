"""Gradient density: how crowded each region of gradient norm is, and the weights that follow.

Source: Gradient Harmonized Single-stage Detector (Li, Liu, Wang, AAAI 2019), Eq. 4-7, 9-10, 12-13.
Symbols: g gradient norm, M = `bins` unit regions of length 1/M, R_j examples in region j now, S_j
their moving average, N examples, n occupied regions, beta_i the weight of example i.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ghm.losses.elements import require, world_sum


class GradientDensity(nn.Module):
    r"""Weights \beta_i that give every occupied region of gradient norm the same share.

    - `density="regions"`: GD(g) = S_{ind(g)} M (Eq. 9, 13), S_j = \alpha S_j + (1 - \alpha) R_j
      (Eq. 12), divided by 1 - \alpha^t so that early steps are not biased towards zero.
    - `density="exact"`: GD(g) = #{k: g - \epsilon/2 <= g_k < g + \epsilon/2} / l_\epsilon(g)
      (Eq. 4-6) over this rank's examples, without moving average; always \beta = N / GD (Eq. 7).
    - `normalize="occupied"`: n takes the place of M, as in the authors' code: the mean weight is 1
      (without average) however few regions are filled. `"all"` is Eq. 9-10 to the letter.
    - `strength` s: the weights are \beta^s, rescaled so that their mean stays that of \beta; s = 1
      is the paper, s = 0 the unweighted loss. It rises linearly over `strength_warmup` training steps.

    State: `average` (M,) float64 and the number of `updates`; both change in training only, never
    under `no_grad`, and never on a batch without a valid example.
    """

    average: Tensor
    updates: Tensor
    inner_edges: Tensor

    def __init__(
        self,
        bins: int,
        momentum: float,
        density: Literal["regions", "exact"] = "regions",
        normalize: Literal["occupied", "all"] = "occupied",
        strength: float = 1.0,
        strength_warmup: int = 0,
    ) -> None:
        super().__init__()
        require(
            isinstance(bins, int) and bins >= 1, "bins", bins, "must be a whole number of 1 or more (the paper: 30)"
        )
        require(
            0.0 <= momentum < 1.0,
            "momentum",
            momentum,
            "must lie in [0, 1); 0 switches averaging off (the paper: 0.75)",
        )
        require(density in ("regions", "exact"), "density", density, "must be 'regions' or 'exact'")
        require(normalize in ("occupied", "all"), "normalize", normalize, "must be 'occupied' or 'all'")
        require(0.0 <= strength <= 1.0, "strength", strength, "must lie in [0, 1]; 1 is the paper")
        require(strength_warmup >= 0, "strength_warmup", strength_warmup, "must be 0 or more steps")
        self.bins, self.momentum = bins, float(momentum)
        self.density, self.normalize = density, normalize
        self.strength, self.strength_warmup = float(strength), strength_warmup
        self.register_buffer("average", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        inner_edges = torch.arange(1, bins, dtype=torch.float64) / bins
        self.register_buffer("inner_edges", inner_edges, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GradientDensity":
        """`half()` and the like move the state but keep its type: float16 ends at 65504 examples."""
        average = self.average
        super()._apply(fn, recurse)
        self.average = average.to(self.average.device)
        return self

    def forward(self, g: Tensor, valid: Tensor) -> Tensor:
        """Weights of the examples; zero where not valid.

        Shapes: `g` any, values in [0, 1]; `valid` bool, alike. Returns weights, shaped as `g`.
        """
        g = g.detach()
        updating = self.training and torch.is_grad_enabled()
        if self.density == "exact":
            if updating:
                self.updates += valid.any()
            return self._harden(exact_weights(g, valid, self.bins), valid, updating)
        region = unit_region(g, self.inner_edges)
        counts = world_sum(region_counts(region, valid, self.bins))
        table = self._harden(self._region_weights(counts, updating), counts, updating)
        return table.to(g.dtype)[region].where(valid, g.new_zeros(()))

    def _region_weights(self, counts: Tensor, updating: bool) -> Tensor:
        """beta of each region (M,), Eq. 10 with the averaged counts of Eq. 13; 0 for empty ones."""
        total, occupied = counts.sum(), counts > 0
        updates = self.updates + (total > 0)
        average = self.momentum * self.average + (1.0 - self.momentum) * counts
        average = average.where(total > 0, self.average)
        if updating:
            self.average.copy_(average)
            self.updates.copy_(updates)
        corrected = average / (1.0 - self.momentum ** updates.clamp(min=1).double())
        regions = occupied.sum() if self.normalize == "occupied" else self.bins
        return (total / (corrected * regions)).where(occupied, corrected.new_zeros(()))

    def _harden(self, beta: Tensor, count: Tensor, updating: bool) -> Tensor:
        """beta^s with the mean of beta; `count` says how many examples carry each beta."""
        if self.strength == 1.0 and self.strength_warmup == 0:
            return beta
        strength = beta.new_tensor(self.strength)
        if self.strength_warmup:
            # While updating, `updates` already counts the present step: the first has strength 0.
            done = (self.updates - 1).clamp(min=0) if updating else self.updates
            strength = strength * (done / self.strength_warmup).clamp(max=1.0)
        count = count.to(beta.dtype)
        softened = (beta**strength).where(count > 0, beta.new_zeros(()))
        mass = (count * softened).sum().clamp(min=torch.finfo(beta.dtype).tiny)
        return softened * ((count * beta).sum() / mass)


def unit_region(g: Tensor, inner_edges: Tensor) -> Tensor:
    """ind(g): the region [j/M, (j+1)/M) in which g lies, g = 1 in the last. int64, shaped as `g`."""
    return torch.bucketize(g.contiguous(), inner_edges.to(g.dtype), right=True)


def region_counts(region: Tensor, valid: Tensor, bins: int) -> Tensor:
    """R_j (bins,) as float64: whole numbers stay exact far beyond float32's 2^24."""
    counts = torch.zeros(bins, dtype=torch.int64, device=region.device)
    return counts.scatter_add_(0, region.flatten(), valid.flatten().long()).double()


def exact_weights(g: Tensor, valid: Tensor, bins: int) -> Tensor:
    """beta = N / GD(g) of Eq. 4-7 with epsilon = 1 / bins, by sorting: O(N log N)."""
    half = 0.5 / bins
    values = g.where(valid, g.new_full((), float("inf"))).flatten().sort().values
    lower, upper = torch.searchsorted(values, torch.stack([g - half, g + half]).contiguous())
    inside = (upper - lower).to(g.dtype)  # delta_epsilon, Eq. 5
    length = (g + half).clamp(max=1.0) - (g - half).clamp(min=0.0)  # Eq. 6
    beta = valid.sum() * length / inside.clamp(min=1)
    return beta.where(valid, g.new_zeros(()))
