"""Losses for classes that exclude one another: softmax in place of the sigmoid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import element_wise, expand, full_precision, world_mean
from ghm.losses.ghm_c import GHMC


class SoftmaxCrossEntropy(nn.Module):
    """Weight times the mean of -log softmax(x)_y, the loss of two-stage detectors' classes.

    Shapes: logits (A, C) or (N, C, H, W), classes in dimension 1; target class indices (A,) or (N, H, W),
    ignored outside [0, C); valid bool, shaped as the target. Returns a scalar.
    """

    exclusive = True  # asks for a background class among the logits

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        counts = (target >= 0) & (target < input.shape[1])
        if valid is not None:
            counts = counts & valid
        x = full_precision(input).masked_fill(~counts.unsqueeze(1), 0)
        ce = F.cross_entropy(x, target.masked_fill(~counts, 0), reduction="none")
        return self.weight * world_mean(ce, counts)


class SoftmaxGHMC(GHMC):
    r"""L = weight / N \sum_i \beta_i CE(p_i, y_i) with p = softmax(x), an example being a position.

    Not in the paper, whose g is the magnitude of the sigmoid's gradient p - y. Here p - y is a vector, and
    g = 1/2 \sum_c |p_c - y_c| in [0, 1]: 1 - p of the true class, and the paper's g with two classes.

    Shapes: logits (A, C) or (N, C, H, W), classes in dimension 1; target class indices (A,) or (N, H, W),
    ignored outside [0, C), or probabilities, shaped as the logits; valid bool, (A,) or as class indices;
    `level_sizes` the rows of each pyramid level. Returns a scalar. Settings as for `GHMC`.
    """

    exclusive = True

    def forward(
        self, input: Tensor, target: Tensor, valid: Tensor | None = None, level_sizes: Sequence[int] | None = None
    ) -> Tensor:
        if input.dim() < 2:
            raise ValueError(f"logits of shape {tuple(input.shape)}: must have their classes in dimension 1")
        x = full_precision(input)
        y = element_wise(target, input).to(x.dtype)
        ignored = torch.zeros_like(x[:, 0], dtype=torch.bool)
        if target.shape != input.shape:
            ignored = (target < 0) | (target >= input.shape[1])
        if valid is not None:
            ignored = ignored | ~expand(valid, ignored)
        x, y = (part.masked_fill(ignored.unsqueeze(1), 0) for part in (x, y))
        log_p = x.log_softmax(1)
        gradient = (log_p.detach().exp() - y).abs().sum(1) / 2
        # Rounding must not carry g past 1, beyond which there is no region.
        weights = self.weights(gradient.clamp_(max=1), ignored, level_sizes)
        # Where y is 0 log p may be -inf.
        ce = -(y * log_p.masked_fill(y == 0, 0)).sum(1)
        return self.scale * (weights * ce).sum()
