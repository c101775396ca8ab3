"""One run as the command line and a sweep start it: checked, recorded, handed to Ray Train, and ended orderly."""

import json
import os
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from ghm import provenance
from ghm.cluster import check_fits, connected
from ghm.failure import Failed, lost
from ghm.job import Job
from ghm.provenance import write_atomically
from ghm.record import same
from ghm.record.description import describe
from ghm.record.resume import refuse_other
from ghm.remote import moved, nodes
from ghm.remote.carried import find_also
from ghm.remote.group import fit
from ghm.settings.checks import check
from ghm.settings.paths import absolute
from ghm.tracking import Sender, Spool, Tracker
from ghm.worker import train_worker
from sweeps.states import ENDS, State

BEGUN = "run.json"


class TrainingError(Failed):
    """A run that started and failed; its cause says why."""


def train(cfg: DictConfig) -> float | tuple[float, ...]:
    """One run, checked, trained, scored and recorded: the task that Hydra calls.

    Returns the objective after the last epoch, or each of several. ValueError for settings that cannot work, before
    anything is recorded; TrainingError when the run itself fails.
    """
    cfg = absolute(cfg)
    check(cfg)
    job = Job.of(cfg, start=Spool(Path(cfg.dir)).attempts() + 1)
    same.refuse_changed(job, cfg.trial.inputs)
    with _cluster(job):
        job = _placed(job, cfg)
        with _sent(job):
            _claim(job)
            return _recorded(job, cfg)


def _recorded(job: Job, cfg: DictConfig) -> float | tuple[float, ...]:
    """Train, and record what comes of it."""
    spool = Spool(job.place.folder, job.key.start)
    describe(spool, job, cfg)
    try:
        result = _fit(job)
    except BaseException as error:
        if job.key.sweep is not None and lost(error) is not None:
            raise  # whether it goes on is the sweep's to say
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        spool.set_tags({"error": "".join(traceback.format_exception(error))[-4000:]})
        spool.finish(State.CANCELLED if interrupted else State.FAILED)
        if interrupted:
            raise
        raise TrainingError(f"run in {job.place.folder} failed: {error}") from error
    spool.finish(ENDS[result["answer"]])
    values = tuple(float(result["metrics"][name]) for name in job.settings.objectives)
    return values if len(values) > 1 else values[0]


def _placed(job: Job, cfg: DictConfig) -> Job:
    """The job with whether all nodes that may go on with it see its folder.

    ValueError where they do not, and no server is there to keep its checkpoints.
    """
    place, key = job.place, job.key
    if key.sweep is not None:
        marked, above = cfg.trial.mark, place.folder.parents[:2]  # the sweep's folder is above the trial's
        shared = cfg.trial.shared and (marked is None or any(nodes.sees(folder, marked) for folder in above))
        # A node that is gone no longer says that it sees another folder; what it trained may be in MLflow alone.
        moving = moved.trained_elsewhere(place.folder, cfg.trial.epochs) and not nodes.is_file(place.tracking_uri)
        shared = shared and not moving
    elif place.workers > 0:
        nodes.refuse_local_tracking(place.tracking_uri)
        shared = nodes.count() == 1 or nodes.Sight(place.folder).shared()
    else:
        return job
    if shared:
        return job
    if nodes.is_file(place.tracking_uri):
        raise ValueError(
            f"runs={place.runs}: is another folder on each node of this Ray cluster; give one on shared storage, "
            "or set MLFLOW_TRACKING_URI to the address of a tracking server, which then keeps the checkpoints"
        )
    record = key.record or Spool(place.folder).key or uuid.uuid4().hex
    return replace(job, place=replace(place, shared=False), key=replace(key, record=record))


@contextmanager
def _sent(job: Job) -> Iterator[None]:
    """Send the record while it is written; that of a sweep's trial is sent by the sweep, where it sees the folder.

    ValueError when a new run's server does not answer: its address may be wrong.
    """
    place, of_sweep = job.place, job.key.sweep is not None
    if of_sweep and place.shared:
        yield
        return
    tracker = Tracker.open(place.tracking_uri, place.experiment, str(place.runs))
    if not of_sweep and Spool(place.folder).key is None:
        tracker.reach()
    with Sender(tracker, lambda: [place.folder], moved.PATIENCE if of_sweep else 5.0):
        yield


def _claim(job: Job) -> None:
    """Mark a folder as this run's; ValueError when it holds a run whose numbers are others."""
    known, settings = job.place.folder / BEGUN, job.settings.flat()
    if known.exists():
        try:
            before = json.loads(known.read_text())["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"dir={known.parent}: {BEGUN} cannot be read ({error}); give another dir") from error
        refuse_other(job, before, provenance.given(known.parent))
    write_atomically(known, json.dumps({"fingerprint": job.settings.fingerprint, "settings": settings}, indent=2))


def _fit(job: Job) -> dict[str, Any]:
    """Run `train_worker` under Ray Train: in this process, or as a group of worker processes."""
    if job.place.workers > 0:
        return fit(_work, job)
    # Local mode needs no Ray cluster and keeps nothing itself: checkpoints and retries are ours.
    here = ScalingConfig(num_workers=0)
    return TorchTrainer(_work, train_loop_config={"job": job}, scaling_config=here).fit().return_value


def _work(config: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(config.get("variables", {}))
    find_also(config.get("paths", ()))
    return train_worker(config["job"])


@contextmanager
def _cluster(job: Job) -> Iterator[None]:
    """A Ray on which the worker group fits, where one is asked for."""
    place = job.place
    if place.workers == 0:
        yield
        return
    with connected():
        check_fits(place.least_workers, "scaling.num_workers", place.cpus, place.gpus, "scaling.{kind}")
        yield
