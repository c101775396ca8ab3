"""One sweep from start to end: study, parent run, slots, and an orderly way out of each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import TrialState

from ghm.tracking import Run, Tracker
from sweeps.controller import Controller
from sweeps.pool import Pool, Task
from sweeps.space import Params, Space
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
        for key in ("n_trials", "n_jobs"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value}: must be a whole number of at least 1")
        if self.direction not in ("maximize", "minimize"):
            raise ValueError(f"hydra.sweeper.direction={self.direction}: must be maximize or minimize")


Compose = Callable[[int, Params, str, dict[str, Any]], dict[str, Any]]


def run_sweep(
    sweep: Sweep,
    space: Space,
    make_sampler: Callable[[int], BaseSampler],
    pruner: BasePruner,
    task: Task,
    compose: Compose,
    tracker: Tracker,
) -> float | None:
    """Run or continue a sweep; its best value, if any trial has one.

    `make_sampler` gets the number of trials there are, so that a continued study does not draw the
    same numbers again. `compose(number, params, label, context)` makes a trial's config; `context`
    is what the trial has to know of its sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with _alone(sweep.folder):
        storage = open_storage(sweep.storage, sweep.runs)
        study = open_study(storage, sweep.name, sweep.direction, space)
        resume(storage, study)
        n_trials = enqueue(study, sweep.first, space, sweep.n_trials)
        study.sampler, study.pruner = make_sampler(len(study.get_trials(deepcopy=False))), pruner
        left = count(study, *ENDED) < n_trials
        pool = Pool(sweep.n_jobs, sweep.cpus, sweep.gpus, sweep.name) if left else None
        parent = _parent(tracker, sweep)
        state = "failed"
        try:
            if pool is not None:
                _work(sweep, n_trials, study, space, pool, task, compose, parent.run_id)
            state = "finished"
        except KeyboardInterrupt:
            state = "cancelled"
            raise
        finally:
            if pool is not None:
                pool.close()
            resume(storage, study)  # what was running waits for the same command
            tracker.close_children(parent.run_id)
            OmegaConf.save(results(study), sweep.folder / "optimization_results.yaml")
            parent.finish({"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}[state], state)
        return study.best_value if count(study, TrialState.COMPLETE) else None


def _work(
    sweep: Sweep,
    n_trials: int,
    study: Study,
    space: Space,
    pool: Pool,
    task: Task,
    compose: Compose,
    parent: str,
) -> None:
    context = {"name": sweep.name, "parent_run": parent, "hub": pool.hub_name}
    view = View(sweep.name, sweep.objective, n_trials)
    controller = Controller(
        study,
        space,
        pool,
        task,
        lambda number, params, label: compose(number, params, label, context),
        view,
        n_trials,
        sweep.max_failure_rate,
    )
    with view:
        controller.run()


def _parent(tracker: Tracker, sweep: Sweep) -> Run:
    """The sweep's MLflow run, new or continued, without children left over from a controller that died."""
    known = tracker.sweep(sweep.name)
    if known is not None and (run := tracker.resume(known.info.run_id)) is not None:
        tracker.close_children(run.run_id)
        return run
    return tracker.start(
        sweep.name, {"sweep.name": sweep.name, "sweep.kind": "sweep", "sweep.objective": sweep.objective}
    )


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
