"""The training loop, the state it changes and keeps, and the learning rate; without a loss, metric or tracker."""

from ghm.training.schedule import multi_step, one_cycle

__all__ = ["multi_step", "one_cycle"]
