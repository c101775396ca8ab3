"""The state of a run on disk: everything that the next epoch depends on.

Model (with the losses' densities), optimizer and schedule are stored; random numbers and the order
of the data follow from the run's seed and the epoch's number (see `engine.fit`).
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass
class RunState:
    """What is saved; `epoch` counts finished epochs, `metrics` are its, `best` is the best objective so far."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    epoch: int = 0
    best: float = float("-inf")
    metrics: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {name: getattr(self, name) for name in ("epoch", "best", "metrics")}
        content |= {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`; only tensors and plain values are unpickled."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(content[name])
        self.epoch, self.best, self.metrics = content["epoch"], content["best"], content["metrics"]
