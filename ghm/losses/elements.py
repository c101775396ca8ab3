"""The elements of a batch: their targets, which of them count, and means over those of all ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def select(input: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Full-precision input and element-wise target, both zero where ignored, and the mask of what counts.

    Zeroing the *input* (not the loss) keeps NaN and inf of ignored anchors out of the gradient too.

    Shapes: `input` any, classes in dimension 1, as (A, C) or (N, C, H, W); `target` alike, or class
    indices without dimension 1, as (A,) or (N, H, W), -1 or C for background. `valid` bool: the input's
    shape, or its first dimensions, as (A,), or that of class indices.
    Returns float32 (float64 stays) input and target, and a bool mask of the input's shape or None for all.
    """
    x = full_precision(input)
    y = element_wise(target, input).to(x.dtype)
    if valid is None:
        return x, y, None
    positions = valid.shape == target.shape != input.shape
    mask = expand(valid.unsqueeze(1) if positions else valid, input)
    return x.masked_fill(~mask, 0), y.masked_fill(~mask, 0), mask


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def element_wise(target: Tensor, input: Tensor) -> Tensor:
    """The target for each element of `input`; class indices become one-hot, background all zeros."""
    if target.shape == input.shape:
        return target
    if target.is_floating_point() or input.dim() < 2 or target.shape != input.shape[:1] + input.shape[2:]:
        raise ValueError(
            f"target of shape {tuple(target.shape)} and type {target.dtype}: must have the input's shape "
            f"{tuple(input.shape)}, or be class indices without its dimension 1"
        )
    classes = torch.arange(input.shape[1], device=input.device)
    return target.unsqueeze(1) == classes.view(-1, *[1] * (input.dim() - 2))


def expand(valid: Tensor, input: Tensor) -> Tensor:
    """`valid`, of which the dimensions are the input's first ones or 1, as a view of the input's shape."""
    leading = input.shape[: valid.dim()]
    fits = all(size in (1, wanted) for size, wanted in zip(valid.shape, leading, strict=False))
    if valid.dtype != torch.bool or valid.dim() > input.dim() or not fits:
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} and type {valid.dtype}: "
            f"must be bool of shape {tuple(input.shape)} or {tuple(input.shape[:1])}"
        )
    return valid.view(*valid.shape, *[1] * (input.dim() - valid.dim())).expand_as(input)


def rows_of(level_sizes: Sequence[int] | None, rows: int, scope: str) -> list[int]:
    """`level_sizes`; ValueError where they are not the rows of a batch."""
    sizes = list(level_sizes or ())
    if sum(sizes) != rows or not sizes:
        raise ValueError(
            f"level_sizes={level_sizes}: must be the rows of each pyramid level, {rows} in all, because scope={scope}"
        )
    return sizes


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world_sum(local: Tensor) -> Tensor:
    """Sum over all ranks; every rank must call it, also one without a single valid element."""
    if world_size() == 1:
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total


def count(values: Tensor, mask: Tensor | None) -> Tensor:
    """How many elements of `values` the mask keeps (None: all); a tensor on its device, without a sync."""
    if mask is None:
        return torch.full((), values.numel(), dtype=torch.int64, device=values.device)
    return mask.sum()


def world_mean(values: Tensor, mask: Tensor | None, over: Tensor | None = None) -> Tensor:
    """This rank's share of the sum of the masked values of all ranks, divided by their number, or by `over`.

    DistributedDataParallel averages gradients over ranks, so the share is scaled by their number:
    the average of the shares is the mean of the pooled batch, however unevenly it was split.
    """
    total = values.sum() if mask is None else (values * mask).sum()
    number = world_sum(count(values, mask) if over is None else over)
    return total * (world_size() / number.clamp(min=1).to(total.dtype))


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """ValueError `name=value: rule`, the form in which the command line reports bad settings."""
    if not holds:
        raise ValueError(f"{name}={value}: {rule}")
