"""What each Ray Train worker does in a run: build, train, score and record, epoch after epoch."""

import logging
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from ray.train.torch import get_device
from torch import nn

from ghm import scoring
from ghm.data import Data, train_loader, val_loader
from ghm.parts import build, build_model, build_optimizer, open_tracker, recipe
from ghm.scoring import Detection, Judgement
from ghm.tracking import Run
from ghm.training import checkpoint, engine
from ghm.training.checkpoint import RunState

log = logging.getLogger(__name__)


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
    batches = train_loader(data.train, cfg.batch_size, cfg.loader_processes, cfg.seed, rank, world, cfg.accumulate)
    scored = val_loader(data.val, cfg.batch_size, cfg.loader_processes, rank, world)
    state = _begin(cfg, data, len(batches) // cfg.accumulate, device)
    checkpoint.restore(state, folder)
    run = open_tracker(cfg).run(job["run_id"]) if rank == 0 else None
    if run is not None and state.epoch == 0:
        guess = scoring.score(data.val.coco, scoring.chance(data.val.coco))
        run.log_metrics({"val/chance_AP50": guess["AP50"]}, step=0)

    # Densities are equal on all workers, or meant to differ (counts=local): rank 0's must not overwrite them.
    wrapped = nn.parallel.DistributedDataParallel(state.model, broadcast_buffers=False) if world > 1 else state.model
    seed, pruned, judgement = hash((cfg.seed, rank)), False, None
    for result in engine.fit(
        state,
        batches,
        device,
        seed,
        cfg.epochs,
        clip_grad=cfg.clip_grad,
        accumulate=cfg.accumulate,
        amp=cfg.amp,
        model=wrapped,
    ):
        model = state.model if state.average is None else state.average.module
        judgement = scoring.judge(data.val.coco, _detect(model, scored, data, device))
        state.epoch = result.epoch
        numbers = {f"val/{name}": value for name, value in judgement.numbers.items()}
        state.metrics = _over_workers(result.metrics) | numbers
        pruned = _record(cfg, state, folder, run) if run is not None else False
        ray.train.report(state.metrics)
        pruned = _gather(pruned)[0]  # rank 0 decides; the others must not wait for it in another epoch
        if pruned:
            break
    if run is not None:
        _keep(cfg, run, folder, data, judgement)
    return {"metrics": state.metrics, "pruned": pruned}


def _begin(cfg: DictConfig, data: Data, steps_per_epoch: int, device: torch.device) -> RunState:
    """The state of a run that has not done a step."""
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = build_model(cfg, data.train.num_classes).to(device)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    data.train.masks = getattr(model, "needs_masks", False)
    if cfg.compile:
        model.backbone.compile()
    optimizer = build_optimizer(cfg, model)
    return RunState(
        model,
        optimizer,
        build(cfg, "schedule", optimizer, cfg.epochs, steps_per_epoch),
        torch.amp.GradScaler(device.type) if cfg.amp == "fp16" else None,
        None if cfg.ema is None else engine.moving_average(model, cfg.ema),
        recipe=recipe(cfg, data.train.class_names),
    )


def _detect(model: nn.Module, batches: Any, data: Data, device: torch.device) -> list[Detection]:
    """What is found on the images of all workers, each image once."""
    model.eval()
    found = _gather(scoring.detect(model, batches, data.val.category_ids, device))
    return [detection for part in found for detection in part]


def _record(cfg: DictConfig, state: RunState, folder: Path, run: Run) -> bool:
    """Keep an epoch: checkpoints, metrics, a line of log. Whether the sweep wants the trial to stop here."""
    if cfg.objective not in state.metrics:
        raise ValueError(f"objective={cfg.objective}: the validation images hold no object it counts; choose another")
    objective = state.metrics[cfg.objective]
    is_best = objective > state.best
    state.best = max(objective, state.best)
    checkpoint.keep(state, folder, cfg.keep, is_best)
    run.log_metrics(state.metrics, step=state.epoch)
    shown = dict.fromkeys(("train/loss", "val/AP", "val/AP50", cfg.objective))
    values = "  ".join(f"{name} {state.metrics[name]:.4f}" for name in shown if name in state.metrics)
    log.info("epoch %d of %d  %s", state.epoch, cfg.epochs, values)
    if cfg.trial.hub is None:
        return False
    hub = ray.get_actor(cfg.trial.hub)
    return ray.get(hub.report.remote(cfg.trial.trial, state.epoch, cfg.epochs, objective))


def _keep(cfg: DictConfig, run: Run, folder: Path, data: Data, judgement: Judgement | None) -> None:
    """Record a run's checkpoints, and figures of what its last epoch finds and misses."""
    run.log_file(folder / checkpoint.BEST, "checkpoints")
    run.log_file(folder / checkpoint.LAST, "checkpoints")
    if cfg.figures and judgement is not None:
        from ghm.report import detections  # plotting takes a second to import

        for path in detections.write(judgement, data.val.pixels, data.val.class_names, folder / "figures"):
            run.log_file(path, "figures")


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
