"""Learning rate over a run, stepped with the optimizer; epochs in, steps inside."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def one_cycle(optimizer: Optimizer, epochs: int, steps_per_epoch: int, warmup: float = 0.2) -> LRScheduler:
    """From 1/25 up to the optimizer's rate over the share `warmup` of all steps, then down to 0, by cosines.

    After Smith and Topin (2019). torch's OneCycleLR divides by zero when the rise takes one step.
    """
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup={warmup}: must be a share of all steps, in [0, 1]")
    total = epochs * steps_per_epoch
    rise = warmup * total

    def factor(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
        fallen = min((step - rise) / max(total - rise, 1), 1.0)
        return (1 + math.cos(math.pi * fallen)) / 2

    return LambdaLR(optimizer, factor)


def multi_step(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    milestones: list[int],
    gamma: float = 0.1,
    warmup_steps: int = 0,
) -> LRScheduler:
    """Times `gamma` after each milestone (in epochs), after a linear warm-up from a thousandth."""

    def factor(step: int) -> float:
        passed = sum(step >= milestone * steps_per_epoch for milestone in milestones)
        warm = 1.0 if step >= warmup_steps else 0.001 + 0.999 * step / warmup_steps
        return warm * gamma**passed

    return LambdaLR(optimizer, factor)
