"""One sweep from start to end: study, parent run, slots, and an orderly way out of each."""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from optuna.study import Study
from optuna.trial import TrialState

from ghm.cluster import connected
from ghm.tracking import SPOOL, Sender, Spool, Tracker, agree
from sweeps.controller import Controller, Record, Search
from sweeps.pool import Pool, Task
from sweeps.space import Params
from sweeps.states import State
from sweeps.study import ENDED, count, enqueue, open_storage, open_study, results, resume
from sweeps.view import View


@dataclass(frozen=True)
class Sweep:
    """What is to be done. ValueError for numbers that make no sweep."""

    name: str
    folder: Path  # holds one folder a trial
    runs: Path  # holds the study's database unless `storage` names another
    direction: str
    n_trials: int
    n_jobs: int
    storage: str | None
    max_failure_rate: float
    first: list[Params]  # settings to try before any other
    cpus: float
    gpus: float
    objective: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w([\w .-]*[\w-])?", self.name):
            raise ValueError(
                f"hydra.sweeper.study_name={self.name}: may hold letters, digits, space, dot, - and _ only, "
                "and neither begin nor end with a dot or a space"
            )
        for key in ("n_trials", "n_jobs"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value}: must be a whole number of at least 1")
        if not isinstance(self.max_failure_rate, int | float) or not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"hydra.sweeper.max_failure_rate={self.max_failure_rate}: must be in [0, 1]")
        for key in ("cpus", "gpus"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ValueError(
                    f"hydra.sweeper.slot.{key}={value} (scaling.slot.{key}): must be a number of at least 0"
                )
        if self.direction not in ("maximize", "minimize"):
            raise ValueError(f"hydra.sweeper.direction={self.direction}: must be maximize or minimize")


Compose = Callable[[int, Params, str, dict[str, Any]], dict[str, Any]]


def run_sweep(sweep: Sweep, search: Search, task: Task, compose: Compose, tracker: Tracker) -> float | None:
    """Run or continue a sweep; its best value, if any trial has one.

    `compose(number, params, label, context)` makes a trial's config; `context` is what the trial has
    to know of its sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with _alone(sweep.folder), ExitStack() as cluster:
        storage = open_storage(sweep.storage, sweep.runs)
        study = open_study(storage, sweep.name, sweep.direction, search.space, sweep.folder)
        try:
            resume(storage, study)
            n_trials = enqueue(study, sweep.first, search.space, sweep.n_trials)
            pool = None
            if count(study, *ENDED) < n_trials:
                cluster.enter_context(connected())
                pool = Pool(sweep.n_jobs, sweep.cpus, sweep.gpus, sweep.name)
        except ValueError:
            if not count(study, *ENDED):
                optuna.delete_study(storage=storage, study_name=sweep.name)  # nothing was done: leave nothing
            raise
        record = Record(sweep.name, _key(study), sweep.folder)
        with Sender(tracker, lambda: [sweep.folder, *_trials(sweep.folder)]), _orderly_end(study, pool, record):
            spool = Spool(sweep.folder, Spool(sweep.folder).attempts() + 1)
            about = {"sweep.name": sweep.name, "sweep.kind": "sweep", "sweep.objective": sweep.objective}
            spool.start(sweep.name, about, key=record.key)
            if pool is not None:
                view = View(sweep.name, sweep.objective, n_trials)
                with view:
                    Controller(study, search, pool, task, compose, record, view, n_trials, sweep.max_failure_rate).run()
        return study.best_value if count(study, TrialState.COMPLETE) else None


@contextmanager
def _orderly_end(study: Study, pool: Pool | None, record: Record) -> Iterator[None]:
    """However the work ends: no process, no trial and no MLflow run is left running."""
    state = State.FAILED
    try:
        yield
        state = State.DONE
    except (KeyboardInterrupt, SystemExit):
        state = State.CANCELLED
        raise
    finally:
        if pool is not None:
            pool.close()
        resume(study._storage, study)  # what was running waits for the same command
        agree({record.trial(trial.number): _state(trial.state) for trial in study.get_trials(deepcopy=False)})
        OmegaConf.save(results(study), record.folder / "optimization_results.yaml")
        spool = Spool(record.folder, Spool(record.folder).attempts())
        spool.finish(state)


def _state(state: TrialState) -> State:
    names = {TrialState.COMPLETE: State.DONE, TrialState.PRUNED: State.PRUNED, TrialState.FAIL: State.FAILED}
    return names.get(state, State.QUEUED)


def _key(study: Study) -> str:
    """Of the sweep's MLflow run: the study's own, so that no other sweep of this name touches it."""
    if "record" not in study.user_attrs:
        study.set_user_attr("record", uuid.uuid4().hex)
    key: str = study.user_attrs["record"]
    return key


def _trials(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"[0-9]*/{SPOOL}"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder; ValueError if another controller does."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"hydra.sweep.dir={folder}: another sweep is running there; wait for it, or give another "
            "hydra.sweeper.study_name"
        ) from error
    try:
        yield
    finally:
        lock.release()
