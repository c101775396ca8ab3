"""Where a loss puts its gradient: what the figures and charts of harmonizing are drawn from.

Asked for when wanted, computed then, for any sigmoid or box loss; a training that does not ask pays nothing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghm.losses.elements import select, world_size, world_sum
from ghm.losses.histogram import of_regions, region_of
from ghm.losses.smooth_l1 import asl1, root


@dataclass(frozen=True)
class Diagnostics:
    r"""Of a batch, over all ranks, by unit region of gradient norm g; tensors on the batch's device.

    `counts` R_j (M,) int64; `norm` (M,), the sum of g, which is the gradient of the summed plain loss; `magnitude`
    (M,), the sum of the loss's own; `plain` (), the mean cross-entropy or ASL1.
    """

    counts: Tensor
    norm: Tensor
    magnitude: Tensor
    plain: Tensor

    @property
    def weights(self) -> Tensor:
        r"""(M,), a region's gradient over what the plain mean loss would give it; for GHM \beta times its weight."""
        return (self.magnitude * self._total / self.norm).masked_fill(self.magnitude == 0, 0.0)

    @property
    def gradient_share(self) -> Tensor:
        """(M,), each region's part of the whole gradient's magnitude; of sum 1."""
        return self.magnitude / self.magnitude.sum().clamp(min=torch.finfo(torch.float64).tiny)

    @property
    def occupied(self) -> Tensor:
        """(), regions with examples."""
        return (self.counts > 0).sum()

    @property
    def evenness(self) -> Tensor:
        """(), entropy of `gradient_share` over that of M equal ones: 1 where all have the same (Fig. 1, right)."""
        share = self.gradient_share
        entropy = -(share * share.clamp(min=torch.finfo(torch.float64).tiny).log()).sum()
        return entropy / max(math.log(len(share)), 1e-9)

    @property
    def _total(self) -> Tensor:
        return self.counts.sum().clamp(min=1)

    def __add__(self, other: "Diagnostics") -> "Diagnostics":
        """Of two batches together; their gradients are added as they are."""
        plain = self.plain * self.counts.sum() + other.plain * other.counts.sum()
        both = self.counts + other.counts
        return Diagnostics(
            both, self.norm + other.norm, self.magnitude + other.magnitude, plain / both.sum().clamp(min=1)
        )


def diagnose(
    loss: nn.Module, input: Tensor, target: Tensor, valid: Tensor | None = None, bins: int = 30, **call: Any
) -> Diagnostics:
    """Of a sigmoid classification loss, g = |p - p^*| (Eq. 3) in `bins` regions.

    Shapes as for the loss, which gets `call` too (`level_sizes`) and of which the state stays as it is.
    """
    x, y, mask = select(input.detach(), target, valid)
    ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return _diagnose(loss, (x, y, mask), call, x.sigmoid() - y, ce, bins)


def diagnose_boxes(
    loss: nn.Module,
    input: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    bins: int = 10,
    mu: float = 0.02,
    **call: Any,
) -> Diagnostics:
    r"""Of a box loss, gr = |d| / \sqrt{d^2 + \mu^2} (Eq. 18); the plain loss is ASL1 (Eq. 17)."""
    x, y, mask = select(input.detach(), target, valid)
    d = x - y
    return _diagnose(loss, (x, y, mask), call, d / root(d, mu), asl1(d, mu), bins)


def _diagnose(
    loss: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor | None],
    call: dict[str, Any],
    norm: Tensor,
    plain: Tensor,
    bins: int,
) -> Diagnostics:
    x, y, mask = batch
    region = region_of(norm, bins, None if mask is None else ~mask)

    def by_region(values: Tensor) -> Tensor:
        sums = torch.zeros(bins + 2, dtype=torch.float64, device=x.device)
        return of_regions(world_sum(sums.scatter_add_(0, region.long(), values.double().flatten())))

    with _evaluating(loss), torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(x.requires_grad_(), y, mask, **call), x)
    # DistributedDataParallel averages over ranks.
    magnitude = by_region(gradient.abs()) / world_size()
    counts = by_region(torch.ones_like(x))
    return Diagnostics(
        counts.long(), by_region(norm.abs()), magnitude, by_region(plain).sum() / counts.sum().clamp(min=1)
    )


@contextmanager
def _evaluating(loss: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in loss.modules()}
    loss.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
