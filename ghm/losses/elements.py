"""The valid elements of a batch: which they are, how many on all ranks, and the mean over them."""

import torch
import torch.distributed as dist
from torch import Tensor


def select(input: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Full-precision input and target with the ignored elements set to zero, and their mask.

    Zeroing the *input* (not the loss) keeps NaN and inf of ignored anchors out of the gradient too.

    Shapes: `input` and `target` alike, (A, C) or (P, 4); `valid` bool, the same or (A,).
    Returns float32 (float64 stays) input and target, and a bool mask of the input's shape.
    """
    if input.shape != target.shape:
        raise ValueError(f"target of shape {tuple(target.shape)}: must have the input's shape {tuple(input.shape)}")
    x = input if input.dtype == torch.float64 else input.float()
    y = target.to(x.dtype)
    if valid is None:
        return x, y, torch.ones_like(x, dtype=torch.bool)
    if valid.dtype != torch.bool or valid.shape not in (input.shape, input.shape[:1]):
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} and type {valid.dtype}: "
            f"must be bool of shape {tuple(input.shape)} or {tuple(input.shape[:1])}"
        )
    mask = valid if valid.shape == input.shape else valid[:, None].expand_as(input)
    return x.where(mask, x.new_zeros(())), y.where(mask, y.new_zeros(())), mask


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world_sum(local: Tensor) -> Tensor:
    """Sum over all ranks; every rank must call it, also one without a single valid element."""
    if world_size() == 1:
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total


def world_mean(local_sum: Tensor, local_count: Tensor) -> Tensor:
    """This rank's share of the mean over the elements of all ranks.

    DistributedDataParallel averages gradients over ranks, so the share is scaled by their number:
    the average of the shares is the mean of the pooled batch, however unevenly it was split.
    """
    return local_sum * (world_size() / world_sum(local_count).clamp(min=1).to(local_sum.dtype))


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """ValueError `name=value: rule`, the form in which the command line reports bad settings."""
    if not holds:
        raise ValueError(f"{name}={value}: {rule}")
