"""One run as the command line and a sweep start it: checked, recorded, handed to Ray Train, and ended orderly."""

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ghm import provenance
from ghm.failure import Failed
from ghm.parts import check, division, open_tracker
from ghm.paths import absolute
from ghm.secrets import without_secrets
from ghm.tracking import Run
from ghm.worker import train_worker

BEGUN = "run.json"
# Settings that a continued run may have changed: they decide no number.
FREE = ("epochs", "keep", "loader_processes", "figures")


class TrainingError(Failed):
    """A run that started and failed; its cause says why."""


def train(cfg: DictConfig) -> float:
    """One run, checked, trained, scored and recorded: the task that Hydra calls.

    Returns the objective after the last epoch. ValueError for settings that cannot work, before
    anything is recorded; TrainingError when the run itself fails.
    """
    cfg = absolute(cfg)
    check(cfg)
    folder = Path(cfg.dir)
    with _cluster(cfg.scaling):
        run, begun = _open_run(cfg, folder)
        try:
            if not begun:
                _describe(run, cfg, folder)
            result = _fit(cfg, folder, run.run_id)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            run.set_tags({"error": "".join(traceback.format_exception(error))[-4000:]})
            run.finish("KILLED" if interrupted else "FAILED", "cancelled" if interrupted else "failed")
            if interrupted:
                raise
            raise TrainingError(f"run {run.run_id} in {folder} failed: {error}") from error
    if result["pruned"]:
        run.finish("KILLED", "pruned")
    else:
        run.finish("FINISHED", "finished")
    return float(result["metrics"][cfg.objective])


def _open_run(cfg: DictConfig, folder: Path) -> tuple[Run, bool]:
    """The MLflow run begun in this folder before (and True), or a new one (and False).

    ValueError when the folder holds a run with other settings: its checkpoint is not this run's.
    """
    tracker, known, settings = open_tracker(cfg), folder / BEGUN, _settings(cfg)
    if known.exists():
        before = json.loads(known.read_text())
        for key in sorted(before["settings"].keys() | settings.keys()):
            old, new = before["settings"].get(key), settings.get(key)
            if old != new and key not in FREE:
                raise ValueError(f"dir={folder}: holds a run with {key}={old}, not {new}; give another dir")
        if (run := tracker.resume(before["run_id"])) is not None:
            return run, True
    tags = {f"sweep.{key}": cfg.trial[key] for key in ("name", "trial", "params") if cfg.trial[key] is not None}
    tags |= {"mlflow.source.git.commit": provenance.commit(), "dir": folder}
    run = tracker.start(cfg.trial.label or folder.name, tags, parent=cfg.trial.parent_run)
    folder.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps({"run_id": run.run_id, "settings": settings}, indent=2))
    return run, False


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """All that a run's numbers depend on, by dotted key: not where it runs or what is kept where."""
    places = ("cwd", "dir", "runs", "tracking", "trial")
    about = OmegaConf.create({key: cfg[key] for key in cfg if key not in places})
    return without_secrets(provenance.flat(OmegaConf.to_container(about, resolve=True)))


def _describe(run: Run, cfg: DictConfig, folder: Path) -> None:
    """Record all that the run depends on: config, overrides, versions of packages."""
    run.log_params(_settings(cfg))
    run.log_text(OmegaConf.to_yaml(cfg, resolve=True), "config/config.yaml")
    run.log_text(json.dumps(provenance.packages(), indent=2), "config/packages.json")
    overrides = folder / ".hydra" / "overrides.yaml"
    if overrides.exists():
        run.log_file(overrides, "config")
    if OmegaConf.select(cfg, "data.val_share") is not None:
        run.log_text(json.dumps(division(cfg), indent=2), "config/division.json")


def _fit(cfg: DictConfig, folder: Path, run_id: str) -> dict[str, Any]:
    """Run `train_worker` under Ray Train: in this process, or as a group of worker processes."""
    job = {"config": OmegaConf.to_container(cfg, resolve=True), "folder": str(folder), "run_id": run_id}
    if cfg.scaling.num_workers > 0:
        return _fit_in_workers(job, cfg.scaling)
    # Local mode needs no Ray cluster and keeps nothing itself: checkpoints and retries are ours.
    here = ScalingConfig(num_workers=0)
    return TorchTrainer(train_worker, train_loop_config=job, scaling_config=here).fit().return_value


def _fit_in_workers(job: dict[str, Any], scaling: DictConfig) -> dict[str, Any]:
    # Train's controller answers a report once per interval; its default of 2 s is long beside an epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.gpus > 0,
            resources_per_worker={"CPU": scaling.cpus, "GPU": scaling.gpus},
        ),
        run_config=RunConfig(
            name=f"train-{job['run_id']}",
            storage_path=f"{job['folder']}/ray",
            failure_config=FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(scaling.cpus)}},
        ),
    )
    # In the main thread `fit` would take the interrupt handler over for good. A daemon, because an
    # interrupted run must not wait for its end.
    ended: Future[Any] = Future()
    Thread(target=lambda: _settle(ended, trainer.fit), daemon=True).start()
    return ended.result().return_value


def _settle(future: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


@contextmanager
def _cluster(scaling: DictConfig) -> Iterator[None]:
    """A Ray on which `scaling` fits: that of the sweep, of RAY_ADDRESS, or one for this run alone."""
    own = scaling.num_workers > 0 and not ray.is_initialized()
    if own:
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which would skip an orderly end
    try:
        for kind, each in {"CPU": scaling.cpus, "GPU": scaling.gpus}.items() if scaling.num_workers else ():
            there = ray.cluster_resources().get(kind, 0)
            if scaling.num_workers * each > there:
                raise ValueError(
                    f"scaling.num_workers={scaling.num_workers}: as many times {each:g} {kind} do not fit the "
                    f"{there:g} of this Ray cluster; lower it or scaling.{kind.lower()}s"
                )
        yield
    finally:
        if own:
            ray.shutdown()
