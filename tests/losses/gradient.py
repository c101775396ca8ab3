"""What the tests of all losses compare."""

from collections.abc import Callable

from torch import Tensor


def value_and_gradient(loss: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor | None]:
    x = x.clone().requires_grad_()
    value = loss(x, *rest)
    value.backward()
    return value.detach(), x.grad
