"""A run in several processes: a worker group of Ray Train."""

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from torch.distributed import DistError

from ghm.failure import Lost, lost
from ghm.job import Job
from ghm.remote.carried import carried
from ghm.tracking import Spool
from ghm.worker import epoch_line

log = logging.getLogger(__name__)


def fit(work: Callable[[dict[str, Any]], dict[str, Any]], job: Job) -> dict[str, Any]:
    """What `work({"job": job, "variables": ..., "paths": ...})` returns in rank 0 of the job's workers.

    Their epochs are logged here.

    Lost when the group ended through no fault of what it ran.
    """
    # Train's controller answers a report once per interval; its default of 2 s is long beside an epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    place = job.place
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "variables": carried(), "paths": sys.path},
        scaling_config=ScalingConfig(
            num_workers=place.workers if place.workers == place.least_workers else (place.least_workers, place.workers),
            elastic_resize_monitor_interval_s=place.resize,
            use_gpu=place.gpus > 0,
            resources_per_worker={"CPU": place.cpus, "GPU": place.gpus},
        ),
        # Ray would choose NCCL for whatever has a GPU; processors talk over gloo.
        torch_config=TorchConfig(backend="gloo" if job.settings.device == "cpu" else None),
        run_config=RunConfig(
            name=f"train-{Spool(place.folder).key}-{job.key.start}",
            storage_path=str(place.folder / "ray"),
            failure_config=FailureConfig(max_failures=place.max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(job.settings.threads)}},
        ),
    )
    # In the main thread `fit` would take the interrupt handler over for good. A daemon, because an
    # interrupted run must not wait for its end.
    ended: Future[Any] = Future()
    Thread(target=lambda: _settle(ended, trainer.fit), daemon=True).start()
    spool = Spool(place.folder)
    shown = spool.last_step()
    while not wait([ended], timeout=0.5).done:
        shown = _show_epochs(spool, job, shown)
    _show_epochs(spool, job, shown)
    try:
        return ended.result().return_value
    except TrainingFailedError as error:
        if (reason := _group_lost(error)) is not None:
            raise Lost(reason) from error
        raise


def _group_lost(error: TrainingFailedError) -> str | None:
    """Why a worker group ended through no fault of what it ran; None where a worker raised."""
    if not isinstance(error, WorkerGroupError):
        return f"its worker group was lost ({' '.join(str(error).split())[:300]})"
    reasons = {rank: _worker_lost(failure) for rank, failure in error.worker_failures.items()}
    if None in reasons.values():
        return None
    return "; ".join(f"worker {rank}: {reason}" for rank, reason in reasons.items())


def _worker_lost(failure: Exception) -> str | None:
    """Of one worker: it died, or lost its connection to one that did."""
    text = " ".join(str(failure).split())[:300]
    if isinstance(failure, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError | DistError):
        return text
    return text if "gloo" in text and isinstance(failure, RuntimeError) else lost(failure)


def _show_epochs(spool: Spool, job: Job, after: int) -> int:
    """Log the epochs that workers, whose own log is Ray's, recorded after one; the last of them."""
    for entry in spool.entries():
        if "metrics" in entry and entry["step"] > max(after, 0):
            after = entry["step"]
            log.info(epoch_line(job.settings, after, entry["metrics"]))
    return after


def _settle(future: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
