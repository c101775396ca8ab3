"""What the tests of all losses share: batches such as a detector makes, and what they compare."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# `density`, `normalize` of GHM-C and GHM-R.
MODES = [("regions", "occupied"), ("regions", "all"), ("exact", "occupied")]


def classification(
    seed: int = 0,
    anchors: int = 40,
    classes: int = 3,
    dtype: torch.dtype = torch.float64,
    positives: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and a mask: nearly all negative and easy."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(anchors, classes, generator=generator) < positives).to(dtype)
    x = torch.randn(anchors, classes, generator=generator, dtype=dtype) * 2 - 2
    return x, y, torch.rand(anchors, classes, generator=generator) < 0.8


def boxes(seed: int = 0, positives: int = 25, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Box offsets, from nearly right to far off, their targets and a mask."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(positives, 4, generator=generator, dtype=dtype)
    error = torch.randn(positives, 4, generator=generator, dtype=dtype) ** 3 * 0.1
    return target + error, target, torch.rand(positives, 4, generator=generator) < 0.8


def value_and_gradient(loss: Callable[..., Tensor], x: Tensor, *rest: Any, **call: Any) -> tuple[Tensor, Tensor | None]:
    x = x.clone().requires_grad_()
    value = loss(x, *rest, **call)
    value.backward()
    return value.detach(), x.grad


def state_of(loss: nn.Module) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in loss.state_dict().items()}


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
