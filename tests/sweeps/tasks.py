"""Tasks that cost nothing, importable by Ray's processes, which take as long as what this imports."""

import errno
import os
import signal
import time
from pathlib import Path

import ray
from omegaconf import DictConfig

from sweeps.states import Answer


def full_disk() -> None:
    raise RuntimeError("could not be kept") from OSError(errno.ENOSPC, "No space left on device")


def no_memory() -> None:
    raise MemoryError


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


LOSSES = {102: stopped, 103: full_disk, 104: no_memory}


def parabola(cfg: DictConfig) -> float:
    """The task: best at x = 1, and a little less with each seed. Leaves a line in its folder for each time it is run.

    Below 0 it raises, at 101 its process dies each time, at some others it is lost in some way the first time.
    """
    folder = Path(cfg.dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ran").exists() and cfg.x in LOSSES:
        (folder / "ran").write_text("once\n")
        LOSSES[cfg.x]()
    with (folder / "ran").open("a") as file:
        file.write("once\n")
    (folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    hub = ray.get_actor(cfg.hub)
    for epoch in range(1, 6):
        time.sleep(cfg.get("seconds", 0) / 5)
        value = -((cfg.x - 1) ** 2) * epoch
        if ray.get(hub.report.remote(cfg.trial, cfg.attempt, epoch, 5, value)) != Answer.GO_ON:
            break
    if cfg.x < 0:
        raise RuntimeError(f"x={cfg.x} is below zero")
    if cfg.x == 101:
        os._exit(1)
    return -((cfg.x - 1) ** 2) - 0.01 * cfg.seed


def absent() -> None:
    raise ModuleNotFoundError("No module named 'mine'")


class Absent:
    """A task of a module that is not found where trials run."""

    def __reduce__(self) -> tuple[object, ...]:
        return absent, ()


def visible_gpus(config: dict[str, object]) -> dict[str, object]:
    """Of each worker of a group: the GPUs that it sees and those that are its own; and how they talk."""
    import torch.distributed as dist

    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, (os.environ["CUDA_VISIBLE_DEVICES"], ray.get_gpu_ids()))
    return {"seen": values, "backend": dist.get_backend()}


def reach_and_cost(cfg: DictConfig) -> tuple[float, ...]:
    """A task of two objectives, of which it returns as many as `returns` says; reach 3 is dear."""
    reach, cost = float(cfg.x), 20.0 if cfg.x == 3 else float(cfg.x) ** 2
    hub = ray.get_actor(cfg.hub)
    ray.get(hub.report.remote(cfg.trial, cfg.attempt, 1, 1, reach, {"reach": reach, "cost": cost}))
    return (reach, cost)[: cfg.get("returns", 2)]
