"""Gradient density: how crowded each region of gradient norm is, and the weights that follow.

Source: Gradient Harmonized Single-stage Detector (Li, Liu, Wang, AAAI 2019), Eq. 4-7, 9-10, 12-13.
Symbols: g gradient norm, M = `bins` unit regions of length 1/M, R_j examples in region j now, S_j
their moving average, N examples, n occupied regions, beta_i the weight of example i.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ghm.losses.average import MovingAverage
from ghm.losses.elements import full_precision, require, world_size, world_sum
from ghm.losses.histogram import (
    GRID,
    SORTED_UP_TO,
    grid_cell_of,
    grid_density,
    histogram,
    of_regions,
    region_of,
    sorted_density,
)


class GradientDensity(nn.Module):
    r"""Weights \beta_i / N that give every occupied region of gradient norm the same share.

    - `density="regions"`: GD(g) = S_{ind(g)} M (Eq. 9, 13), S_j = \alpha S_j + (1 - \alpha) R_j
      (Eq. 12), \alpha = `momentum`. `"exact"`: GD(g) = #{k: g - \epsilon/2 <= g_k < g + \epsilon/2}
      / l_\epsilon(g) (Eq. 4-6), \epsilon = 1/M, without moving average; then \beta = N / GD (Eq. 7)
      whatever `normalize` says.
    - `normalize="occupied"`: n takes the place of M, as in the authors' code: the mean weight is 1
      (without average) however few regions are filled. `"all"` is Eq. 9-10 to the letter.
    - `strength` s: the weights are \beta^s, rescaled so that their mean stays that of \beta; s = 1
      is the paper, s = 0 the unweighted loss. It rises linearly over `strength_warmup` training steps.
    - `matched`: all weights are multiplied so that the sum of gradient magnitudes is that of the unweighted loss,
      \sum_i \beta_i g_i = \sum_i g_i. So a loss has the weight of its plain form, and a warm-up begins as that.
      Not in the paper, by which the sum depends on how many regions are filled; docs/paper.md has the evidence.
    - `bias_correction`: S_j is divided by 1 - \alpha^t, because a start at zero makes the first weights
      1 / (1 - \alpha) times too large. False: mmdetection.
    - `emptied="decay"`: a region without examples decays as all others do (Eq. 12). `"stay"`: mmdetection.
    - `counts="world"`: R_j counts all ranks, the paper's mini-batch. `"local"`: each rank its own, as in
      all public code.
    - `accumulation` k: the average moves once in k calls, those of one optimizer step.
    - `max_weight`: the largest \beta allowed, for those who train in float16; None for no limit.
    - `new_bins`: a saved average of another M is an "error", or a "reset": it starts anew.

    NaN is in no region and has no weight, so that it spoils the value but not the state.
    """

    def __init__(
        self,
        bins: int,
        momentum: float,
        density: Literal["regions", "exact"] = "regions",
        normalize: Literal["occupied", "all"] = "occupied",
        strength: float = 1.0,
        strength_warmup: int = 0,
        matched: bool = False,
        bias_correction: bool = True,
        emptied: Literal["decay", "stay"] = "decay",
        counts: Literal["world", "local"] = "world",
        accumulation: int = 1,
        max_weight: float | None = None,
        new_bins: Literal["error", "reset"] = "error",
    ) -> None:
        super().__init__()
        whole = isinstance(bins, int) and bins >= 1
        require(whole, "bins", bins, "must be a whole number of 1 or more (the paper: 30)")
        require(density in ("regions", "exact"), "density", density, "must be 'regions' or 'exact'")
        require(normalize in ("occupied", "all"), "normalize", normalize, "must be 'occupied' or 'all'")
        require(0.0 <= strength <= 1.0, "strength", strength, "must lie in [0, 1]; 1 is the paper")
        require(strength_warmup >= 0, "strength_warmup", strength_warmup, "must be 0 or more steps")
        require(counts in ("world", "local"), "counts", counts, "must be 'world' or 'local'")
        positive = max_weight is None or max_weight > 0
        require(positive, "max_weight", max_weight, "must be above 0, or null for no limit")
        self.bins, self.density, self.normalize = bins, density, normalize
        self.strength, self.strength_warmup, self.matched = float(strength), strength_warmup, matched
        self.counts, self.max_weight = counts, max_weight
        regions = bins if density == "regions" else 1
        self.average = MovingAverage(regions, momentum, bias_correction, emptied, accumulation, new_bins)
        if density == "exact":  # no regions to average: only steps are counted, for the warm-up
            self.average.new_bins = "reset"

    @property
    def ranks(self) -> int:
        """How many processes pool their counts."""
        return world_size() if self.counts == "world" else 1

    def forward(self, gradient: Tensor, ignored: Tensor | None = None) -> Tensor:
        r"""\beta_i / N of each example, 0 where ignored; N is the number of examples of this call, on all `ranks`.

        Shapes: `gradient` any, in [-1, 1], its magnitude is g; `ignored` bool, alike. Returns float32 or
        float64, alike.
        """
        gradient = full_precision(gradient.detach())
        weights, number = self._weights(gradient, ignored)
        return self._matched(weights, gradient, ignored, number) if self.matched else weights

    def _weights(self, gradient: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
        r"""\beta_i / N, and N."""
        if self.density == "exact" and self.ranks == 1 and gradient.numel() <= SORTED_UP_TO:
            return self._sorted_weights(gradient, ignored)
        if self.density == "exact":
            cell = grid_cell_of(gradient, ignored)
            counts = self._pooled(histogram(cell, GRID + 2)[:-1])
            beta = self._exact_weights(counts, grid_density(counts, self.bins))
        else:
            cell = region_of(gradient, self.bins, ignored)
            counts = self._pooled(of_regions(histogram(cell, self.bins + 2)))
            beta = self._region_weights(counts)
            beta = torch.cat([beta, beta[-1:]])  # g = 1 has a number of its own
        number = counts.sum()
        share = (beta / number.clamp(min=1)).to(gradient.dtype)
        table = torch.cat([share, share.new_zeros(1)])  # no region, no weight
        return table.index_select(0, cell).view(gradient.shape), number

    def _matched(self, weights: Tensor, gradient: Tensor, ignored: Tensor | None, number: Tensor) -> Tensor:
        norm = gradient.abs().nan_to_num_(nan=0.0)
        if ignored is not None:
            norm.masked_fill_(ignored, 0.0)
        plain, harmonized = self._pooled(torch.stack([norm.sum(), (weights * norm).sum()]))
        scale = plain / number.clamp(min=1) / harmonized.clamp(min=torch.finfo(weights.dtype).tiny)
        return weights * scale.to(weights.dtype)

    def _pooled(self, counts: Tensor) -> Tensor:
        return world_sum(counts) if self.counts == "world" else counts

    def _region_weights(self, counts: Tensor) -> Tensor:
        """beta of each region (M,), Eq. 10 with the averaged counts of Eq. 13; 0 for empty ones."""
        average, counts, updates = self.average(counts)
        occupied = counts > 0
        regions = occupied.sum() if self.normalize == "occupied" else self.bins
        beta = (counts.sum() / (average * regions)).masked_fill(~occupied, 0.0)
        return self._limited(beta, counts, updates)

    def _exact_weights(self, counts: Tensor, density: Tensor) -> Tensor:
        """beta = N / GD (Eq. 7) where `counts` says how many examples there are; 0 for none."""
        total = counts.sum()
        _, _, updates = self.average(total[None])
        beta = (total / density).masked_fill(counts == 0, 0.0)
        return self._limited(beta, counts, updates)

    def _sorted_weights(self, gradient: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
        g = gradient.abs()
        valid = g <= 1.0 if ignored is None else (g <= 1.0) & ~ignored
        beta = self._exact_weights(valid.long(), sorted_density(g, valid, self.bins))
        number = valid.sum()
        return (beta / number.clamp(min=1)).to(g.dtype), number

    def _limited(self, beta: Tensor, counts: Tensor, updates: Tensor) -> Tensor:
        r"""\beta^s with the mean of \beta, at most `max_weight`; `counts` says how many examples carry each."""
        if self.strength < 1.0 or self.strength_warmup:
            strength = torch.full_like(updates, self.strength, dtype=beta.dtype)
            if self.strength_warmup:
                strength = strength * (updates / self.strength_warmup).clamp(max=1.0)
            softened = (beta**strength).masked_fill(counts == 0, 0.0)
            mass = (counts * softened).sum().clamp(min=torch.finfo(beta.dtype).tiny)
            beta = softened * ((counts * beta).sum() / mass)
        return beta if self.max_weight is None else beta.clamp(max=self.max_weight)
