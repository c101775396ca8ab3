"""The training loop: a generator that yields after each epoch. It knows no loss, metric or tracker."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ghm.training.checkpoint import RunState

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EpochResult:
    """`epoch` counts finished epochs, `step` optimizer steps; `metrics` are means over the epoch."""

    epoch: int
    step: int
    metrics: dict[str, float]


def fit(
    state: RunState,
    loader: DataLoader[Any],
    device: torch.device,
    seed: int,
    epochs: int,
    *,
    clip_grad: float | None = None,
    accumulate: int = 1,
    amp: Literal["bf16", "fp16"] | None = None,
    model: nn.Module | None = None,
) -> Iterator[EpochResult]:
    """Train from epoch `state.epoch` up to `epochs`; every value the model returns is reported by its name.

    `model(images, targets)`, `state.model` or a wrapper of it, returns scalars; those named `loss_*` are
    summed and minimised, as the mean over the `accumulate` batches of a step. `state.scheduler` steps with
    the optimizer. `loader.batch_sampler` is a `ghm.data.loader.Batches`. FloatingPointError when loss or
    gradient are no longer finite, before the step is taken.

    What the model draws depends on `seed` (this worker's) and the epoch's number, the order and augmentation
    of the data on the sampler's seed and the epoch's number: an epoch after a restart equals the same epoch
    of a run that was never stopped.
    """
    model = state.model if model is None else model
    for epoch in range(state.epoch, epochs):
        torch.manual_seed(hash((seed, epoch)))
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        model.train()
        sums: dict[str, Tensor] = {}
        clock = Clock()
        for number, (images, targets) in enumerate(clock.waiting_for(loader), start=1):
            last = number % accumulate == 0
            with _apart(model, not last):
                with torch.autocast(device.type, AMP.get(amp or ""), enabled=amp is not None):
                    parts = model(*_moved(images, targets, device))
                loss = torch.stack([value for name, value in parts.items() if name.startswith("loss_")]).sum()
                _scaled(state, loss / accumulate).backward()
            sound = torch.isfinite(loss.detach()) & (_clip(state, clip_grad) if last else True)
            if not sound:
                raise FloatingPointError(_diagnosis(loss, parts, targets, epoch))
            if last:
                _step(state)
            clock.images += len(images)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        metrics = {f"train/{name}": float(total) / len(loader) for name, total in sums.items()}
        metrics["train/lr"] = float(state.scheduler.get_last_lr()[0])
        yield EpochResult(epoch + 1, (epoch + 1) * len(loader) // accumulate, metrics | clock.metrics())


class Clock:
    """Images a second of an epoch, and the share of its time in which no batch was ready."""

    def __init__(self) -> None:
        self.begin, self.waited, self.images = time.perf_counter(), 0.0, 0

    def waiting_for(self, loader: DataLoader[Any]) -> Iterator[Any]:
        batches, asked = iter(loader), self.begin
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def metrics(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begin
        return {"time/images_per_s": self.images / seconds, "time/input_wait": self.waited / seconds}


def _moved(
    images: list[Tensor], targets: list[dict[str, Tensor]], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return (
        [image.to(device, non_blocking=True) for image in images],
        [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets],
    )


def _apart(model: nn.Module, apart: bool) -> AbstractContextManager[Any]:
    """Workers exchange gradients once a step, not once a batch."""
    return model.no_sync() if apart and isinstance(model, DistributedDataParallel) else nullcontext()


def _scaled(state: RunState, loss: Tensor) -> Tensor:
    return loss if state.scaler is None else state.scaler.scale(loss)


def _clip(state: RunState, clip_grad: float | None) -> Tensor | bool:
    """Clip the gradient; whether it is finite, as far as that is known and not the scaler's business."""
    if clip_grad is None:
        return True
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
    return state.scaler is not None or torch.isfinite(norm)


def _step(state: RunState) -> None:
    taken = True
    if state.scaler is None:
        state.optimizer.step()
    else:  # leaves the step out when the gradient overflowed, and scales the next one less
        before = state.scaler.get_scale()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        taken = state.scaler.get_scale() >= before
    state.optimizer.zero_grad(set_to_none=True)
    if taken:
        state.scheduler.step()
    if taken and state.average is not None:
        state.average.update_parameters(state.model)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights; young ones forget faster, by (1 + n) / (10 + n)."""
    if not 0 < decay < 1:
        raise ValueError(f"ema={decay}: must lie in (0, 1), as 0.9998; null for none")

    @torch.no_grad()
    def update(averages: Any, weights: Any, steps: Any) -> None:
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))

    return AveragedModel(model, multi_avg_fn=update)


def _diagnosis(loss: Tensor, parts: dict[str, Tensor], targets: list[dict[str, Tensor]], epoch: int) -> str:
    values = ", ".join(f"{name}={value.item():g}" for name, value in parts.items())
    images = [int(target["image_id"]) for target in targets]
    what = "the gradient is not finite" if torch.isfinite(loss) else f"loss={loss.item()}"
    return (
        f"{what} in epoch {epoch + 1} ({values}) on images {images}; "
        "lower optimizer.lr, or set clip_grad, or warm the loss's strength up for longer"
    )
