"""What the tests of all losses share: batches such as a detector makes, and what they compare."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


def mean_over_regions(elements: list[tuple[float, float]], bins: int, normalize: str) -> float:
    """(1 / M) sum_j (1 / R_j) sum_{i in j} L_i (Eq. 9-11), with n for M where asked; of pairs g_i, L_i."""
    regions: dict[int, list[float]] = {}
    for g, loss in elements:
        regions.setdefault(min(int(g * bins), bins - 1), []).append(loss)
    means = [sum(losses) / len(losses) for losses in regions.values()]
    return sum(means) / (len(means) if normalize == "occupied" else bins)


def sum_over_densities(elements: list[tuple[float, float]], bins: int) -> float:
    """sum_i L_i / GD(g_i) (Eq. 4-6, 8), pair by pair; of pairs g_i, L_i."""
    half, total = 0.5 / bins, 0.0
    for g, loss in elements:
        near = sum(g - half <= other < g + half for other, _ in elements)
        total += loss * (min(g + half, 1.0) - max(g - half, 0.0)) / near
    return total


def assert_ignored_leave_no_trace(
    make: Callable[[], nn.Module], batch: tuple[Tensor, Tensor, Tensor], junk: float
) -> None:
    """Not in the value, the gradient or the state, over two steps."""
    x, y, valid = batch
    clean, soiled = make(), make()
    for _ in range(2):
        expected, expected_gradient = value_and_gradient(clean, x[valid], y[valid])
        bad_x, bad_y = x.clone(), y.clone()
        bad_x[~valid], bad_y[~valid] = junk, junk
        value, gradient = value_and_gradient(soiled, bad_x, bad_y, valid)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[valid], expected_gradient)
        assert gradient[~valid].eq(0).all()
        assert_same_state(soiled, clean)


def assert_checkpointing_changes_nothing(
    make: Callable[[], nn.Module],
    batches: list[tuple[Tensor, Tensor, Tensor]],
    sizes: list[int],
    use_reentrant: bool,
) -> None:
    """Neither the gradients nor the state, step after step."""
    plain, repeated = make(), make()
    for x, *rest in batches:
        _, expected = value_and_gradient(plain, x, *rest, level_sizes=sizes)
        _, gradient = value_and_gradient(
            lambda x, rest=rest: checkpoint(repeated, x, *rest, sizes, use_reentrant=use_reentrant), x
        )
        torch.testing.assert_close(gradient, expected)
        assert_same_state(repeated, plain)


def state_of(loss: nn.Module) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in loss.state_dict().items()}


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
