"""Binary cross-entropy, the baseline that every other classification loss reweights (Eq. 1)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import require, rows_of, select, world_mean


class CrossEntropy(nn.Module):
    r"""Weight times the mean of CE(p, p^*) over the valid elements (Eq. 1).

    `scope="level"`: the sum of the means of each pyramid level, as public detectors of 2018 had it. The paper's
    baseline, of weight 20 and with a prior bias of 0.01, begins at "around 1" in this sum over five levels.

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,); `level_sizes` the rows of each
    level. Returns a scalar.
    """

    def __init__(self, weight: float = 1.0, scope: Literal["pooled", "level"] = "pooled") -> None:
        super().__init__()
        require(scope in ("pooled", "level"), "scope", scope, "must be 'pooled' or 'level'")
        self.weight, self.scope = weight, scope

    def forward(
        self, input: Tensor, target: Tensor, valid: Tensor | None = None, level_sizes: Sequence[int] | None = None
    ) -> Tensor:
        x, y, mask = select(input, target, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        if self.scope == "pooled":
            return self.weight * world_mean(ce, mask)
        sizes = rows_of(level_sizes, len(ce), self.scope)
        masks = [None] * len(sizes) if mask is None else mask.split(sizes)
        means = [world_mean(part, own) for part, own in zip(ce.split(sizes), masks, strict=True)]
        return self.weight * torch.stack(means).sum()
