"""What a detector's losses are called with, kept for who wants to look at their gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """Of one loss in one step: (A, C) logits and targets, or (P, 4) offsets; rows of each pyramid level, if told."""

    input: Tensor
    target: Tensor
    valid: Tensor | None
    level_sizes: list[int] | None


class Catch(nn.Module):
    """Stands in for a loss: it keeps what it is called with, level after level, and is 0."""

    scope = "level"

    def __init__(self) -> None:
        super().__init__()
        self.call: Call | None = None

    def forward(
        self, input: Tensor, target: Tensor, valid: Tensor | None = None, level_sizes: list[int] | None = None
    ) -> Tensor:
        self.call = Call(input.detach(), target, valid, level_sizes)
        return input.sum() * 0


@contextmanager
def caught(model: Any) -> Iterator[tuple[Catch, Catch]]:
    """While it lasts, a detector trains with two catches, for classes and boxes, in place of its losses."""
    before, catches = model.losses, (Catch(), Catch())
    model.losses = catches
    try:
        yield catches
    finally:
        model.losses = before


class LastCall:
    """Keeps the call of a loss that ends an epoch; the others pass by at no cost.

    `every`: calls of an epoch. A step's tensors live until the next one is asked for.
    """

    def __init__(self, loss: nn.Module, every: int) -> None:
        self.loss, self.every, self.calls = loss, every, 0
        self.kept: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        loss.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        self.calls += 1
        if self.calls % self.every == 0:
            detached = [one.detach() if isinstance(one, Tensor) else one for one in arguments]
            self.kept = tuple(detached), named

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of the epoch's last call, once."""
        kept, self.kept = self.kept, None
        return kept
