"""The training loop: a generator that yields after each epoch. It knows no loss, metric or tracker."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class EpochResult:
    """`epoch` counts finished epochs, `step` optimizer steps; `metrics` are means over the epoch."""

    epoch: int
    step: int
    metrics: dict[str, float]


def fit(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    device: torch.device,
    seed: int,
    start: int,
    epochs: int,
    clip_grad: float | None,
) -> Iterator[EpochResult]:
    """Train from epoch `start` up to `epochs`; every value the model returns is reported by its name.

    `model(images, targets)` returns scalars; those named `loss_*` are summed and minimised.
    `scheduler` steps with the optimizer. FloatingPointError when the loss is no longer finite.

    Augmentation depends on `seed` (this worker's) and the epoch's number, the order of the data on the
    sampler's seed and the epoch's number: an epoch after a restart equals the same epoch of a run that
    was never stopped.
    """
    for epoch in range(start, epochs):
        torch.manual_seed(hash((seed, epoch)))
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        sums: dict[str, Tensor] = {}
        begin, images_seen = time.perf_counter(), 0
        for images, targets in loader:
            parts = model(
                [image.to(device, non_blocking=True) for image in images],
                [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets],
            )
            loss = torch.stack([value for name, value in parts.items() if name.startswith("loss_")]).sum()
            if not torch.isfinite(loss):
                raise FloatingPointError(_diagnosis(loss, parts, targets, epoch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            optimizer.step()
            scheduler.step()
            images_seen += len(images)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        seconds = time.perf_counter() - begin
        metrics = {f"train/{name}": float(total) / len(loader) for name, total in sums.items()}
        metrics["train/lr"] = float(scheduler.get_last_lr()[0])
        metrics["time/images_per_s"] = images_seen / seconds
        yield EpochResult(epoch + 1, (epoch + 1) * len(loader), metrics)


def _diagnosis(loss: Tensor, parts: dict[str, Tensor], targets: list[dict[str, Tensor]], epoch: int) -> str:
    values = ", ".join(f"{name}={value.item():g}" for name, value in parts.items())
    images = [int(target["image_id"]) for target in targets]
    return (
        f"loss={loss.item()} in epoch {epoch + 1} ({values}) on images {images}; "
        "lower optimizer.lr, or set clip_grad, or warm the loss's strength up for longer"
    )
