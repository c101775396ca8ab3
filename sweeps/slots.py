"""Slots on a Ray cluster: one warm process each, which runs one trial after another."""

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ghm.cluster import check_fits
from ghm.failure import lost
from ghm.remote.carried import carried, find_also
from ghm.remote.nodes import Sight
from sweeps.goal import Values
from sweeps.hub import Hub, Report
from sweeps.policy import End
from sweeps.states import Answer

log = logging.getLogger(__name__)

Task = Callable[[Any], Any]
NEWS = 0.5  # seconds after which a wait for news ends without any


@dataclass(frozen=True)
class Resources:
    """What one trial takes of a cluster: its slot, and the workers that it starts itself."""

    cpus: float
    gpus: float
    workers: int = 0
    worker_cpus: float = 0.0
    worker_gpus: float = 0.0

    @property
    def total(self) -> dict[str, float]:
        cpus, gpus = self.workers * self.worker_cpus, self.workers * self.worker_gpus
        return {"CPU": self.cpus + cpus, "GPU": self.gpus + gpus}

    def check(self, count: int) -> None:
        """ValueError when the cluster is too small for `count` slots, or for the workers of one trial."""
        check_fits(count, "hydra.sweeper.n_jobs", self.cpus, self.gpus, "hydra.sweeper.slot.{kind}")
        check_fits(self.workers, "scaling.num_workers", self.worker_cpus, self.worker_gpus, "scaling.{kind}")
        there = ray.cluster_resources().get("GPU", 0)
        if there and count > 1 and not self.total["GPU"]:
            log.warning(
                "%d trials at a time share the first of %g GPUs; scaling.slot.gpus=1 gives each its own", count, there
            )


class Slot:
    """A process that keeps its imports between trials.

    One that dies is replaced, not restarted by Ray: while Ray does that, it refuses the next trial.
    """

    def __init__(self, hub: Any, patience: float, task: bytes, variables: dict[str, str], paths: Sequence[str]) -> None:
        """`task` is pickled, as what it imports is found with `paths` alone."""
        self._hub, self._patience, self._warm = hub, patience, False
        self._packed = task
        find_also(paths)
        os.environ.update(variables)  # not in Ray's runtime environment, which its dashboard shows
        # Ray Train looks after the workers of a trial, and shall lose patience no later.
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience)

    def run(self, config: Any, trial: int, attempt: int) -> End:
        with self._beating(trial, attempt):
            try:
                return End(_values(self._task(config)))
            except (Exception, SystemExit) as error:
                # As text: an exception object may not survive the way back.
                reason = lost(error)
                return End(error=traceback.format_exc()) if reason is None else End(lost=reason)
            finally:
                gc.collect()
                if not self._warm:  # what was imported stays: looking through it takes longer than a short trial
                    gc.freeze()
                    self._warm = True

    @cached_property
    def _task(self) -> Task:
        """Unpickled for the first trial, whose failure it is where that cannot be."""
        task: Task = cloudpickle.loads(self._packed)
        return task

    @contextmanager
    def _beating(self, trial: int, attempt: int) -> Iterator[None]:
        ended = Event()

        def beat() -> None:
            while not ended.wait(min(self._patience / 4, 5)):
                with suppress(RayError):
                    if not ray.get(self._hub.beat.remote(trial, attempt)):
                        # Nobody waits for this trial, nor takes its place in the cluster back.
                        ray.kill(ray.get_runtime_context().current_actor)

        ray.get(self._hub.beat.remote(trial, attempt))  # heard before it could be stopped: silence counts from then on
        Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def _values(returned: Any) -> Values:
    """Of one objective, or of several."""
    several = isinstance(returned, Sequence) and not isinstance(returned, str)
    return tuple(map(float, returned)) if several else (float(returned),)


class Slots:
    """`size` slots on the Ray that is connected, and the hub beside them."""

    def __init__(
        self, size: int, resources: Resources, patience: float, task: Task, connect: Callable[[], Sight]
    ) -> None:
        """`task` is what they run, on the config of one trial after another. `connect` connects to a Ray on which they
        fit, once there is something to run, and looks at its nodes.
        """
        self.size, self._resources, self._patience, self._connect = size, resources, patience, connect
        self._task = cloudpickle.dumps(task)  # once, and not with each trial
        self._sight: Sight | None = None
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}  # by the reference to what the slot is to return
        self._killed: dict[int, str] = {}  # trials whose process this ended, and why

    def open(self) -> tuple[str, Sight]:
        """The name of the hub, and what the nodes see; both begin with the first call."""
        if self._sight is None:
            sight = self._connect()
            self._begin_hub()
            self._sight = sight
        return self.hub_name, self._sight

    def _begin_hub(self) -> None:
        self.hub_name = f"hub-{os.getpid()}-{os.urandom(4).hex()}"
        # Beside this process, with which it ends: a node that is lost must not take all trials' answers along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        hub = ray.remote(Hub).options(
            name=self.hub_name, num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        self._hub = hub.remote(self._patience)
        self._news = self._hub.take.remote(NEWS)

    @property
    def busy(self) -> list[int]:
        return [trial for _, trial in self._busy.values()]

    def free(self) -> bool:
        """Whether a trial could start now."""
        if len(self._busy) >= self.size:
            return False
        need = self._resources.total
        if not self._busy or not self._resources.workers:
            return True
        all_of_it, now = ray.cluster_resources(), ray.available_resources()
        others = len(self._busy)
        return all(
            (others + 1) * each <= all_of_it.get(kind, 0) and each <= now.get(kind, 0)
            for kind, each in need.items()
            if each
        )

    def start(self, trial: int, attempt: int, config: Any) -> None:
        if self._idle:
            slot = self._idle.pop()
        else:
            options = {"num_cpus": self._resources.cpus, "num_gpus": self._resources.gpus}
            given = self._hub, self._patience, self._task, carried(), sys.path
            slot = ray.remote(Slot).options(**options).remote(*given)
        self._hub.expect.remote(trial, attempt)
        self._busy[slot.run.remote(config, trial, attempt)] = (slot, trial)

    def events(self, seconds: float) -> list[Report | tuple[int, End]]:
        """What happened, waiting at most `seconds` for something: reports, and trials that ended."""
        if self._sight is None:
            time.sleep(seconds)
            return []
        waited, _ = ray.wait([self._news, *self._busy], timeout=seconds)
        if not waited:
            return []
        done, _ = ray.wait([self._news, *self._busy], num_returns=1 + len(self._busy), timeout=0)
        events: list[Report | tuple[int, End]] = []
        if self._news in done:
            done.remove(self._news)
            reports, silent = ray.get(self._news)
            self._news = self._hub.take.remote(NEWS)
            events += reports
            for trial, for_so_long in silent.items():
                if for_so_long > self._patience and trial not in self._killed:
                    self.kill(trial, f"its process gave no sign of life for {self._patience:g} s")
        return events + [self._ended(reference) for reference in done]

    def answer(self, report: Report, answer: Answer) -> None:
        self._hub.answer.remote(report.trial, answer)

    def kill(self, trial: int, why: str) -> None:
        """End the process of a trial."""
        self._killed[trial] = why
        for slot, running in self._busy.values():
            if running == trial:
                ray.kill(slot)

    def close(self) -> None:
        """End all slots at once, with whatever they run."""
        if self._sight is None:
            return
        if self._resources.workers:
            for trial in self.busy:
                self._forget(trial)
        ray.wait([self._news], timeout=2 * NEWS)  # Ray complains of a call that it has to drop
        for actor in [*self._idle, *(slot for slot, _ in self._busy.values()), self._hub]:
            ray.kill(actor)

    def _ended(self, reference: Any) -> tuple[int, End]:
        slot, trial = self._busy.pop(reference)
        try:
            end = ray.get(reference)
            self._idle.append(slot)
        except RayError as error:  # its process, its memory or its machine is gone
            end = End(lost=self._killed.get(trial) or f"its process died ({type(error).__name__})")
        self._killed.pop(trial, None)
        self._forget(trial, end.lost is not None)
        return trial, end

    def _forget(self, trial: int, clear: bool = True) -> None:
        """Give back what a group of workers held when its driver died: Ray itself would keep it for good."""
        if not self._resources.workers:
            self._hub.forget.remote(trial)
            return
        group = ray.get(self._hub.forget.remote(trial))
        if group is not None and clear:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
