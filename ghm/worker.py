"""The whole path of one run: `train` drives it, `train_worker` is what each Ray Train worker does."""

import copy
import json
import logging
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
import ray.train
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import nn

from ghm import engine, evaluate, provenance
from ghm.checkpoint import RunState
from ghm.data import Data, train_loader, val_loader
from ghm.parts import build, build_model, check, open_tracker
from ghm.tracking import Run

LAST, BEST, BEGUN = "last.pt", "best.pt", "run.json"

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that started and failed; its cause says why."""


def train(cfg: DictConfig) -> float:
    """One run, checked, trained, scored and recorded: the task that Hydra calls.

    Returns the objective after the last epoch. ValueError for settings that cannot work, before
    anything is recorded; TrainingError when the run itself fails.
    """
    cfg = _with_absolute_paths(cfg)
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


def _with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """Ray's processes work in folders of their own; paths are meant from where the command was given."""
    cfg = copy.deepcopy(cfg)
    for key in ("runs", "dir", "data.root", "model.weights"):
        if (path := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, os.path.abspath(Path(cfg.cwd) / path))
    uri = cfg.tracking.uri
    if uri and uri.startswith("sqlite:///"):
        cfg.tracking.uri = f"sqlite:///{os.path.abspath(Path(cfg.cwd) / uri.removeprefix('sqlite:///'))}"
    return cfg


def _open_run(cfg: DictConfig, folder: Path) -> tuple[Run, bool]:
    """The MLflow run begun in this folder before (and True), or a new one (and False).

    ValueError when the folder holds a run with other settings: its checkpoint is not this run's.
    """
    tracker, known, settings = open_tracker(cfg), folder / BEGUN, _settings(cfg)
    if known.exists():
        before = json.loads(known.read_text())
        for key in sorted(before["settings"].keys() | settings.keys()):
            old, new = before["settings"].get(key), settings.get(key)
            if old != new and key != "epochs":
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
    return provenance.flat(OmegaConf.to_container(about, resolve=True))


def _describe(run: Run, cfg: DictConfig, folder: Path) -> None:
    """Record all that the run depends on: config, overrides, versions of packages."""
    run.log_params(_settings(cfg))
    # Without the tracker's address, which may hold a password.
    kept = OmegaConf.create({key: cfg[key] for key in cfg if key != "tracking"})
    run.log_text(OmegaConf.to_yaml(kept, resolve=True), "config/config.yaml")
    run.log_text(json.dumps(provenance.packages(), indent=2), "config/packages.json")
    overrides = folder / ".hydra" / "overrides.yaml"
    if overrides.exists():
        run.log_file(overrides, "config")


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


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """What every worker does, rank 0 recording it. Returns the last metrics and whether it was pruned.

    A run whose folder holds a checkpoint continues after that checkpoint's epoch.
    """
    cfg, folder = OmegaConf.create(job["config"]), Path(job["folder"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device() if cfg.device == "auto" else torch.device(cfg.device)
    torch.manual_seed(cfg.seed)

    data: Data = build(cfg, "data")
    batches = train_loader(data.train, cfg.batch_size, cfg.loader_processes, cfg.seed, rank, world)
    scored = val_loader(data.val, cfg.batch_size, cfg.loader_processes, rank, world)
    model = build_model(cfg, data.train.num_classes).to(device)
    optimizer = build(cfg, "optimizer", model.parameters())
    scheduler = build(cfg, "schedule", optimizer, cfg.epochs, len(batches))
    state = RunState(model, optimizer, scheduler)
    if (folder / LAST).exists():
        state.load(folder / LAST)
    run = open_tracker(cfg).run(job["run_id"]) if rank == 0 else None
    if run is not None and state.epoch == 0:
        guess = evaluate.score(data.val.coco, evaluate.chance(data.val.coco))
        run.log_metrics({"val/chance_AP50": guess["AP50"]}, step=0)

    # Densities are equal on all workers, or meant to differ (counts=local): rank 0's must not overwrite them.
    trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    seed, pruned = hash((cfg.seed, rank)), False
    for result in engine.fit(
        trained, batches, optimizer, scheduler, device, seed, state.epoch, cfg.epochs, cfg.clip_grad
    ):
        model.eval()
        found = _gather(evaluate.detect(model, scored, data.val.category_ids, device))
        scores = evaluate.score(data.val.coco, [detection for part in found for detection in part])
        state.epoch = result.epoch
        state.metrics = _over_workers(result.metrics) | {f"val/{name}": value for name, value in scores.items()}
        pruned = _record(cfg, state, folder, run) if run is not None else False
        ray.train.report(state.metrics)
        pruned = _gather(pruned)[0]  # rank 0 decides; the others must not wait for it in another epoch
        if pruned:
            break
    if run is not None:
        run.log_file(folder / BEST, "checkpoints")
        run.log_file(folder / LAST, "checkpoints")
    return {"metrics": state.metrics, "pruned": pruned}


def _record(cfg: DictConfig, state: RunState, folder: Path, run: Run) -> bool:
    """Keep an epoch: checkpoints, metrics, a line of log. Whether the sweep wants the trial to stop here."""
    if cfg.objective not in state.metrics:
        raise ValueError(f"objective={cfg.objective}: the validation images hold no object it counts; choose another")
    objective = state.metrics[cfg.objective]
    if objective > state.best:
        state.best = objective
        state.save(folder / BEST)
    state.save(folder / LAST)
    run.log_metrics(state.metrics, step=state.epoch)
    shown = dict.fromkeys(("train/loss", "val/AP", "val/AP50", cfg.objective))
    values = "  ".join(f"{name} {state.metrics[name]:.4f}" for name in shown if name in state.metrics)
    log.info("epoch %d of %d  %s", state.epoch, cfg.epochs, values)
    if cfg.trial.hub is None:
        return False
    hub = ray.get_actor(cfg.trial.hub)
    return ray.get(hub.report.remote(cfg.trial.trial, state.epoch, cfg.epochs, objective))


def _gather(value: Any) -> list[Any]:
    """The value of every worker, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _over_workers(metrics: dict[str, float]) -> dict[str, float]:
    """Means over the workers; their images a second add up."""
    parts = _gather(metrics)
    means = {name: sum(part[name] for part in parts) / len(parts) for name in metrics}
    return means | {"time/images_per_s": means["time/images_per_s"] * len(parts)}
