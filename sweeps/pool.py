"""Slots on a Ray cluster: one warm process each, which runs one trial after another."""

import gc
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from omegaconf import OmegaConf
from ray.exceptions import RayActorError, RayTaskError

from ghm.cluster import check_fits

Task = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with a value, or with a traceback."""

    value: float | None
    error: str | None = None


class Slot:
    """A process that keeps its imports between trials."""

    def run(self, task: Task, config: dict[str, Any]) -> Outcome:
        try:
            return Outcome(float(task(OmegaConf.create(config))))
        except Exception:
            # As text: an exception object may not survive the way back.
            return Outcome(None, traceback.format_exc())
        finally:
            gc.collect()


class Hub:
    """Where running trials report their epochs, and learn whether to stop."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, int, float]] = []
        self.stopped: set[int] = set()

    def report(self, trial: int, epoch: int, epochs: int, value: float) -> bool:
        self.reports.append((trial, epoch, epochs, value))
        return trial in self.stopped

    def take(self) -> list[tuple[int, int, int, float]]:
        reports, self.reports = self.reports, []
        return reports

    def stop(self, trial: int) -> None:
        self.stopped.add(trial)


class Pool:
    """`size` slots on the Ray that is connected, and the hub beside them. ValueError when they do not fit it."""

    def __init__(self, size: int, cpus: float, gpus: float, name: str) -> None:
        check_fits(size, "hydra.sweeper.n_jobs", cpus, gpus, "hydra.sweeper.slot.{kind}")
        self.size, self._resources = size, {"num_cpus": cpus, "num_gpus": gpus}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self.hub_name = f"hub-{name}-{os.getpid()}"
        self.hub = ray.remote(Hub).options(name=self.hub_name, num_cpus=0).remote()

    @property
    def free(self) -> int:
        return self.size - len(self._busy)

    def submit(self, trial: int, task: Task, config: dict[str, Any]) -> None:
        slot = self._idle.pop() if self._idle else ray.remote(Slot).options(**self._resources).remote()
        self._busy[slot.run.remote(task, config)] = (slot, trial)

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        """Trials that ended, waiting at most `seconds` for the first."""
        done, _ = ray.wait(list(self._busy), timeout=seconds)
        outcomes = []
        for reference in done:
            slot, trial = self._busy.pop(reference)
            try:
                outcomes.append((trial, ray.get(reference)))
                self._idle.append(slot)
            except (RayActorError, RayTaskError) as error:  # the process is gone; the next trial gets a new one
                outcomes.append((trial, Outcome(None, f"its process died: {error}")))
        return outcomes

    def reports(self) -> list[tuple[int, int, int, float]]:
        """(trial, epoch, epochs, value) since the last call."""
        return ray.get(self.hub.take.remote())

    def stop(self, trial: int) -> None:
        """Ask a trial to end at its next report."""
        ray.get(self.hub.stop.remote(trial))

    def close(self) -> None:
        """End all slots at once, with whatever they run."""
        for actor in [self.hub, *self._idle, *(slot for slot, _ in self._busy.values())]:
            ray.kill(actor)
