"""The state of a run on disk: everything that the next epoch depends on.

Model (with the losses' densities), average of its weights, optimizer, schedule and gradient scale are
stored; random numbers and the order of the data follow from the run's seed and the epoch's number (see
`engine.fit`).
"""

import io
import logging
import os
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

LAST, BEST, EPOCH = "last.pt", "best.pt", "epoch-*.pt"
STATEFUL = ("model", "optimizer", "scheduler", "scaler", "average")
PLAIN = ("epoch", "best", "best_epoch", "history", "recipe")

log = logging.getLogger(__name__)


class Epoch(TypedDict):
    """What a finished epoch came to: its number, when it ended (milliseconds), its metrics.

    `regions`: by region of gradient norm, what its losses did; {} where that was not looked at.
    """

    epoch: int
    at: int
    metrics: dict[str, float]
    regions: NotRequired[dict[str, Any]]


@dataclass
class RunState:
    """What is saved, and changed by training.

    `scaler` is for float16, `average` a moving average of the weights. `epoch` counts finished epochs, and
    `history` holds all of them; `best` is the best objective so far, `best_epoch` the epoch it is of. `recipe`
    says what the model is made of: plain values, enough to build it again.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler | None = None
    average: AveragedModel | None = None
    epoch: int = 0
    best: float = float("-inf")
    best_epoch: int = 0
    history: list[Epoch] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)

    def finish_epoch(
        self, epoch: int, metrics: dict[str, float], objective: float, regions: dict[str, Any] | None = None
    ) -> None:
        """Add what an epoch came to; what it wrote when it was done before is forgotten."""
        self.epoch = epoch
        self.history = [one for one in self.history if one["epoch"] < epoch]
        self.history.append(
            {"epoch": epoch, "at": int(time.time() * 1000), "metrics": metrics, "regions": regions or {}}
        )
        if objective > self.best:
            self.best, self.best_epoch = objective, epoch

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {name: getattr(self, name) for name in PLAIN}
        for name in STATEFUL:
            part = getattr(self, name)
            content[name] = None if part is None else part.state_dict()
        written = io.BytesIO()  # torch hides why it could not write a file
        torch.save(content, written)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(written.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            partial.unlink(missing_ok=True)  # half a file would fill a disk that is full
            raise
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`."""
        self.take(read(path))

    def take(self, content: dict[str, Any]) -> None:
        """Continue from what `read` returned."""
        for name in STATEFUL:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(content[name])
        for name in PLAIN:
            setattr(self, name, content[name])


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; only tensors and plain values are unpickled. ValueError for another file."""
    try:
        with zipfile.ZipFile(path) as file:  # torch does not compare the checksums it writes
            if (damaged := file.testzip()) is not None:
                raise ValueError(f"{damaged} does not have its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes the unpickler fail in any way
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint={path}: cannot be read ({reason}); give another") from error
    if isinstance(content, dict) and {"epoch", "metrics"} <= content.keys():  # older versions knew the last one alone
        ended = int(path.stat().st_mtime * 1000)
        last: Epoch = {"epoch": content["epoch"], "at": ended, "metrics": content["metrics"]}
        content = {"best_epoch": 0, "history": [last]} | content
    if not isinstance(content, dict) or not {*PLAIN, *STATEFUL} <= content.keys():
        raise ValueError(f"checkpoint={path}: was not written by ghm train; give a last.pt or best.pt of a run")
    return content


def commit(state: RunState, folder: Path, count: int) -> None:
    """Write an epoch: from here on it is done, and all else about it follows from this one file."""
    state.save(_path(folder, state.epoch))
    derive(state, folder, count)


def derive(state: RunState, folder: Path, count: int) -> None:
    """Make last.pt and best.pt those that the state names, and keep the newest `count` to fall back on."""
    for epoch, name in ((state.epoch, LAST), (state.best_epoch, BEST)):
        if _path(folder, epoch).exists():
            _link(_path(folder, epoch), folder / name)
    for old in _epochs(folder)[count:]:
        old.unlink()


def adopt(paths: list[Path], folder: Path) -> None:
    """Take a run's last.pt and best.pt from another folder, where it got further there. ValueError if unreadable."""
    by_name = {path.name: path for path in paths}
    if LAST not in by_name:
        return
    epoch, here = read(by_name[LAST])["epoch"], newest(folder)
    if here is not None and here["epoch"] >= epoch:
        return
    by_name[LAST].replace(_path(folder, epoch))
    if BEST in by_name:
        by_name[BEST].replace(folder / BEST)


def committed(folder: Path) -> int:
    """The last epoch that was written here; 0 without any."""
    return max((_number(path) for path in _epochs(folder)), default=0)


def newest(folder: Path) -> dict[str, Any] | None:
    """The content of the newest checkpoint of a folder that can be read; None if there is none at all.

    ValueError when there are some and none can be read.
    """
    candidates = [*_epochs(folder), *(path for path in [folder / LAST] if path.exists())]
    for path in candidates:
        try:
            return read(path)
        except ValueError as error:
            log.warning("%s; falling back to the one before", str(error).rsplit("; ", 1)[0])
    if candidates:
        raise ValueError(f"dir={folder}: holds {len(candidates)} checkpoints, none of them readable; give another dir")
    return None


def _path(folder: Path, epoch: int) -> Path:
    return folder / EPOCH.replace("*", f"{epoch:04d}")


def _epochs(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(EPOCH), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _link(path: Path, name: Path) -> None:
    """A second name for a file, put in place atomically; a copy where the file system knows no links."""
    if name.exists() and name.samefile(path):
        return
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(name)
