"""Learning rate over a run, stepped with the optimizer; epochs in, steps inside."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def one_cycle(optimizer: Optimizer, epochs: int, steps_per_epoch: int, warmup: float = 0.2) -> LRScheduler:
    """Up to the optimizer's rate over the share `warmup` of all steps, then down to nearly 0 (cosine)."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=epochs * steps_per_epoch, pct_start=warmup, cycle_momentum=False)


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
