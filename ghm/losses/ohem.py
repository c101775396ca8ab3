"""Online hard example mining (Shrivastava, Gupta, Girshick, CVPR 2016) for dense classification."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import require, select, world_mean


class OHEM(nn.Module):
    """Weight times the mean cross-entropy of the hardest elements, or examples.

    - `ratio` alone: all positive elements, and `ratio` of the hardest negative ones for each (`ratio` in all
      where a batch has no positive).
    - `keep`: as Lin et al. (2017) compared it: the `keep` examples of each image with the largest loss, an example
      being all classes of an anchor. With `ratio` they hold at most one positive for so many negatives ("1:3").
      `nms`: an example does not count that overlaps a harder one by a larger IoU; None: all count.

    Shapes: logits (A, C), target (A, C) in [0, 1], valid bool (A, C) or (A,). `images`: how many the A examples
    are of, in equal parts. `suppress`: turns hardness (images, A / images) into bool, false for what `nms` leaves
    out; the detector's, which knows the boxes. Returns a scalar.
    """

    def __init__(
        self, ratio: float | None = 3.0, weight: float = 1.0, keep: int | None = None, nms: float | None = None
    ) -> None:
        super().__init__()
        given = ratio is not None or keep is not None
        require(given, "ratio", ratio, "must be negatives a positive (common: 3), where keep is null")
        require(ratio is None or ratio > 0, "ratio", ratio, "must be above 0 negatives a positive (common: 3)")
        whole = keep is None or (isinstance(keep, int) and keep >= 1)
        require(whole, "keep", keep, "must be a whole number of examples an image (Lin et al.: 128), or null")
        fits = nms is None or (keep is not None and 0 < nms <= 1)
        require(fits, "nms", nms, "must be an IoU in (0, 1] beside keep (Lin et al.: 0.7), or null")
        self.ratio, self.weight, self.keep, self.nms = ratio, weight, keep, nms

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        valid: Tensor | None = None,
        images: int = 1,
        suppress: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        x, y, mask = select(input, target, valid)
        ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        hardness = ce.detach()
        if self.keep is None:
            kept = self._hard_elements(hardness, y, mask)
        else:
            kept = self._hard_examples(hardness, y, mask, self.keep, images, suppress)
        return self.weight * world_mean(ce, kept)

    def _hard_elements(self, hardness: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        positive = y > 0  # ignored elements have y = 0
        negative = ~positive if mask is None else mask & ~positive
        order = _rank(hardness.where(negative, -1.0).flatten()).view(y.shape)
        assert self.ratio is not None
        return positive | (negative & (order < self.ratio * positive.sum().clamp(min=1)))

    def _hard_examples(
        self,
        hardness: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keep: int,
        images: int,
        suppress: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        def by_image(rows: Tensor) -> Tensor:
            return rows.view(images, -1)

        counts = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
        candidate = by_image(counts.any(dim=1))
        loss = by_image((hardness * counts).sum(dim=1)).where(candidate, -1.0)
        if suppress is not None:
            candidate = candidate & suppress(loss)
        positive = candidate & by_image((y > 0).any(dim=1))
        room = torch.full_like(loss[:, :1], keep)
        if self.ratio is not None:
            most = max(int(keep / (1 + self.ratio)), 1)
            positive = positive & (_rank(loss.where(positive, -1.0)) < most)
            candidate = candidate & ~by_image((y > 0).any(dim=1))
            room = room - positive.sum(dim=1, keepdim=True)
        else:
            positive = torch.zeros_like(positive)
        kept = positive | (candidate & (_rank(loss.where(candidate, -1.0)) < room))
        return counts & kept.flatten()[:, None]


def _rank(values: Tensor) -> Tensor:
    """Place of each value among those of its last dimension, 0 for the largest."""
    # By sorting: top-k would need the number of positives on the host.
    order = values.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
